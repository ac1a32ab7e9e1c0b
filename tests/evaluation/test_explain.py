"""Kinds and norms of tokens against the specification, tokens against their texts, and the page and picture of them."""

import copy
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from infobert_fast import reference
from infobert_fast.cli import main
from infobert_fast.data.corpora import load
from infobert_fast.data.source import draw
from infobert_fast.evaluation.explain import Explanation, Token, explain
from infobert_fast.evaluation.explain_page import explanation_page, words

PAIRS = [
    ("the tiny red box of anna is in the park", "the box is red"),
    ("the huge blue cup of ben is made of glass", "the cup is in the garden also"),
    ("the red box", "the box is blue"),
]


@pytest.fixture(scope="module")
def model(nli_folder):
    return AutoModelForSequenceClassification.from_pretrained(nli_folder / "model").eval()


@pytest.fixture(scope="module")
def tokenizer(nli_folder):
    return AutoTokenizer.from_pretrained(nli_folder / "model")


def literal(model, tokenizer, texts, label, cl, ch):
    """One text alone: kinds and relative norms from the model's own embedding layer's gradient."""
    batch = tokenizer(*texts, return_tensors="pt")
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(out))
    logits = model(**batch).logits
    hook.remove()
    label = logits.argmax(-1) if label is None else torch.tensor([label])
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label), seen[0])
    order = reference.anchor_indices(grad, batch["attention_mask"], 0.0, 1.0).tolist()
    n, norms = len(order), grad[0].norm(dim=-1)
    kinds = [""] * n
    for rank, position in enumerate(order):
        below, above = rank < math.ceil(n * cl), rank >= math.ceil(n * ch)
        kinds[position] = "useless" if below else "non-robust" if above else "anchored"
    return kinds, (norms / norms.max()).tolist(), int(label), logits.detach().softmax(-1)[0]


@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize(("cl", "ch"), [(0.5, 0.9), (0.0, 1.0), (0.3, 0.3)])
def test_kinds_are_those_of_training(model, tokenizer, cl, ch, budget):
    """One by one or padded together, for labels that are given and not."""
    texts, labels = [*PAIRS, ("the red box is in the park",)], [0, None, 2, None]
    found = explain(model, tokenizer, texts, labels, cl=cl, ch=ch, batch_tokens=budget)
    for pair, label, one in zip(texts, labels, found, strict=True):
        kinds, norms, used, probabilities = literal(model, tokenizer, pair, label, cl, ch)
        assert [token.kind for token in one.tokens] == kinds
        assert [token.norm for token in one.tokens] == pytest.approx(norms, rel=1e-3, abs=1e-5)
        assert (one.label, one.given) == (model.config.id2label[used], label is not None)
        assert one.prediction == model.config.id2label[int(probabilities.argmax())]
        assert one.probability == pytest.approx(float(probabilities.max()), rel=1e-4)
        assert one.parts == len(pair)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_label_matters(model, tokenizer):
    first, second = explain(model, tokenizer, [PAIRS[0]] * 2, [0, 1])
    assert [t.norm for t in first.tokens] != [t.norm for t in second.tokens]


def byte_level(text):
    """A byte-level tokenizer that knows no word: one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(["<s>", "</s>", "<pad>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_tokens_are_shown_as_the_text_has_them(model, tokenizer):
    """Neither a tokenizer's marks nor its bytes; words of several tokens stay together."""
    from infobert_fast.evaluation.explain import _tokens

    text = "Crème brûlée, 日本"
    fast = byte_level(text)
    encoded = fast(text)
    count = len(encoded["input_ids"])
    tokens = _tokens(fast, (text,), encoded, [0.5] * count, ["useless"] * count)
    assert (tokens[0].text, tokens[0].part, tokens[-1].text) == ("<s>", None, "</s>")
    shown = "".join((" " if token.space else "") + token.text for token in tokens[1:-1])
    assert shown.replace("·", "").strip() == text
    assert "".join(tokens[i].text for i in range(1, 6)) == "Crè·m"  # è is two bytes, the second shown as a dot
    assert next(words(tokens)) == tokens[:1]  # a special token by itself
    (one,) = explain(model, tokenizer, [("the  red box",)])
    assert [(token.text, token.space) for token in one.tokens[1:-1]] == [("the", False), ("red", True), ("box", True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": [("a box", " ")]}, "text 1 is .* in which one is empty"),
        ({"labels": [3, 0, 0]}, "label 1 was 3; the model has 0 to 2, entailment, neutral, contradiction"),
        ({"labels": [0]}, "`labels` holds 1 entries and `texts` 3"),
        ({"cl": 0.9, "ch": 0.5}, "`cl` must not exceed `ch`"),
    ],
    ids=str,
)
def test_refusals(model, tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        explain(model, tokenizer, **{"texts": PAIRS, **change})


def test_models_of_another_kind_are_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.config, "problem_type", "regression")
    with pytest.raises(ValueError, match="use one of at least two labels"):
        explain(model, tokenizer, PAIRS)


def test_a_gradient_that_is_not_finite_is_refused(model, tokenizer):
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.classifier.out_proj.weight, math.nan)
    with pytest.raises(ValueError, match="has a gradient that is not finite: check the model"):
        explain(broken, tokenizer, PAIRS)


class Page(HTMLParser):
    """Every tag closed, and what is fetched or run from it."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_escapes_what_it_shows():
    """Texts, labels and the title are anybody's."""
    evil = "<script>alert('\"&')</script>"
    tokens = [Token("<s>", "useless", 0.1, False, None), Token(evil, "anchored", 1.0, False, 0)]
    one = Explanation(tokens, 1, evil, True, evil, 0.5)
    page = explanation_page([one, one], evil, 0.5, 0.9)
    parser = Page()
    parser.feed(page)
    assert parser.open == []
    assert evil not in page
    assert "".join(parser.text).count(evil) >= 6
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not [a for a in parser.attributes if a[1] in ("src", "href") or a[1].startswith("on")]
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_tells_kinds_apart_without_colour(model, tokenizer):
    page = explanation_page(explain(model, tokenizer, PAIRS), "model", 0.5, 0.9, ("premise", "hypothesis"))
    style = page.split("<style>")[1].split("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    for kind, sign in (("anchored", "font-weight"), ("non-robust", "text-decoration: underline")):
        assert sign in re.search(rf"\.{kind} {{[^}}]*}}", style)[0]
    assert "repeating-linear-gradient" in style  # hatched bars beside full and hollow ones
    assert page.count("<td>anchored</td>") == page.count('<span class="token anchored" style') - 1 + page.count(
        '<span class="token anchored special"'
    )  # the legend has one, and the table each in words
    assert "premise" in page
    assert page == explanation_page(explain(model, tokenizer, PAIRS), "model", 0.5, 0.9, ("premise", "hypothesis"))


def test_the_command(nli_folder, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    source = f"{nli_folder / 'test.jsonl'}"
    arguments = [str(nli_folder / "model"), "the red box ||| the box is red", "--pair", *PAIRS[1]]
    assert main(["explain", *arguments, "--data", source, "--limit", "2", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"written to {out}" in said.replace("\n", "")
    assert "[anchored]" in said  # marks, since this is no terminal
    assert "loss of the given label" in said
    assert out.read_text().count("<article>") == 4
    drawn = draw(load(source), 2)  # what `evaluate --limit 2` scores, too
    assert all(row["hypothesis"].split()[-1] in said for row in drawn)
    assert {row["hypothesis"] for row in drawn} != {row["hypothesis"] for row in load(source).select(range(2))}
    assert not list(out.parent.glob("*.partial"))


def test_labels_by_name_and_number(nli_folder, tmp_path, capsys):
    common = ["explain", str(nli_folder / "model"), "a box", "a cup", "--output", str(tmp_path / "page.html")]
    for labels in (["Neutral"], ["1", "neutral"]):
        assert main([*common, *(word for label in labels for word in ("--label", label))]) == 0
        assert capsys.readouterr().out.count("loss of the given label neutral") == 2


def test_the_picture_is_the_same_in_every_run(nli_folder, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        assert main(["explain", str(nli_folder / "model"), "cost: $5 and $6", "--output", str(path)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no text; give some"),
        (["a ||| b ||| c"], "has 3 parts; a pair has two"),
        (["a", "--label", "maybe"], "`label` was 'maybe'; the model has entailment, neutral, contradiction"),
        (["a", "--label", "0", "--label", "1"], "`label` was given 2 times for 1 texts"),
        (["a", "--output", "page.txt"], "must end in .html (a page) or .png (a picture)"),
        (["a", "--limit", "0"], "`limit` was 0"),
        (["a", "--cl", "0.9", "--ch", "0.1"], "`cl` must not exceed `ch`"),
    ],
    ids=str,
)
def test_the_commands_refusals(nli_folder, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(nli_folder / "model"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a box", "--limit", "3"], "`limit` was 3; it is for the examples of a source: give --data"),
        (["a box", "--task", "nli"], "`task` was 'nli'; it is for the examples of a source"),
        (["--data", "DATA", "--label", "neutral"], "`label` was ['neutral']; the examples of --data have theirs"),
        (["--data", "TWO", "--task", "nli2"], "no output's loss is that of a class"),
        (["a box", "--model_labels", "x", "y"], "`model_labels` was ['x', 'y']; the model has 3 outputs"),
    ],
)
def test_options_without_an_effect_are_refused(nli_folder, tmp_path, capsys, arguments, message):
    (tmp_path / "two.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "entailment"}\n')
    paths = {"DATA": str(nli_folder / "test.jsonl"), "TWO": str(tmp_path / "two.jsonl")}
    typed = [paths.get(word, word) for word in arguments]
    assert main(["explain", str(nli_folder / "model"), *typed]) == 2
    assert message in capsys.readouterr().err


def test_a_failure_leaves_the_last_picture(nli_folder, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fails(figure, path, **settings):
        path.write_bytes(b"half")
        raise RuntimeError("no more paper")

    page = tmp_path / "e.png"
    page.write_bytes(b"the last")
    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(RuntimeError, match="no more paper"):
        main(["explain", str(nli_folder / "model"), "a box", "--output", str(page)])
    assert page.read_bytes() == b"the last"
    assert list(tmp_path.iterdir()) == [page]
