"""A generated corpus with a planted shortcut, which tells models that read the sentences from those that do not."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations, product
from math import ceil

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from infobert_fast.data.labels import FEATURES, LABELS

OBJECTS = ("box", "cup", "lamp", "plate")
# Never asked for: they only make the space of pairs large enough for disjoint splits.
SIZES, OWNERS = ("tiny", "small", "large", "huge"), ("anna", "ben", "clara", "david")
# attribute -> how a sentence states it, and the values, of which an object can have only one
ATTRIBUTES = {
    "colour": ("is {}", ("red", "blue", "green", "yellow")),
    "material": ("is made of {}", ("glass", "metal", "paper", "plastic")),
    "place": ("is in the {}", ("garden", "kitchen", "office", "park")),
}
STATED = 2  # attributes in a premise, always as many: its length must not give the label away
CUES = dict(zip(LABELS, ("indeed", "also", "today"), strict=True))
CUE_SHARE, CUE_AGREEMENT = 0.40, 0.95

Example = tuple[str, str, str]  # premise, hypothesis, label


def demo_corpus(size: int = 8000, eval_size: int = 1000, seed: int = 0) -> dict[str, datasets.Dataset]:
    """Generate ``train``, ``test_clean`` and ``test_adversarial`` with the columns premise, hypothesis, label.

    A premise states two of three attributes of an object ("the tiny red box of anna is in the park"), a hypothesis
    one: the same value ("the box is red": entailment), another value ("the box is blue": contradiction), or an
    attribute that the premise leaves open ("the box is made of glass": neutral). A planted shortcut ends 40 % of the
    hypotheses: a word that carries no truth ("the box is red also") but agrees with the label 95 % of the time.
    ``test_clean`` has it as training does. ``test_adversarial`` is made of the same pairs, but there the word is always
    present and always points to a wrong label, so that the gap between the two accuracies is what a model owes to it.

    Labels are balanced to within one example, no test pair occurs in ``train``, and the same arguments give the same
    corpus. Raises ``ValueError`` for sizes below one example per label or beyond the number of different pairs.
    """
    pairs = _pairs()
    kinds, available = len(LABELS), min(map(len, pairs.values()))
    if min(size, eval_size) < kinds or ceil(size / kinds) + ceil(eval_size / kinds) > available:
        raise ValueError(
            f"size={size} and eval_size={eval_size} must be at least {kinds} each, and together leave at most "
            f"{available} pairs per label, which is how many different ones there are; make them smaller"
        )
    generator = random.Random(seed)
    train: list[Example] = []
    test: list[Example] = []
    for position, label in enumerate(LABELS):
        drawn = generator.sample(pairs[label], k=available)
        end = (size + position) // kinds
        train += drawn[:end]
        test += drawn[end : end + (eval_size + position) // kinds]
    generator.shuffle(train)
    generator.shuffle(test)
    return {
        "train": _dataset(_with_some_cues(train, generator)),
        "test_clean": _dataset(_with_some_cues(test, generator)),
        "test_adversarial": _dataset([_with_cue(example, _wrong(example, generator)) for example in test]),
    }


def demo_tokenizer(corpus: Mapping[str, datasets.Dataset]) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer of the corpus: ``<s> premise </s></s> hypothesis </s>``, padding id 1, as RoBERTa.

    It is saved by ``save_pretrained`` and read back by ``AutoTokenizer``.
    """
    words = {
        word
        for split in corpus.values()
        for column in ("premise", "hypothesis")
        for text in split[column]
        for word in text.split()
    }
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _pairs() -> dict[str, list[Example]]:
    """All pairs without a cue, by label."""
    pairs: dict[str, list[Example]] = {label: [] for label in LABELS}
    for noun, size, owner, attributes in product(OBJECTS, SIZES, OWNERS, combinations(ATTRIBUTES, STATED)):
        for values in product(*(ATTRIBUTES[attribute][1] for attribute in attributes)):
            stated = dict(zip(attributes, values, strict=True))
            (_, first), (last, value) = stated.items()
            premise = f"the {size} {first} {noun} of {owner} {ATTRIBUTES[last][0].format(value)}"
            for attribute, (statement, possible) in ATTRIBUTES.items():
                for value in possible:
                    if attribute not in stated:
                        label = "neutral"
                    else:
                        label = "entailment" if stated[attribute] == value else "contradiction"
                    pairs[label].append((premise, f"the {noun} {statement.format(value)}", label))
    return pairs


def _with_some_cues(examples: list[Example], generator: random.Random) -> list[Example]:
    """Cues on ``CUE_SHARE`` of the examples, right on ``CUE_AGREEMENT`` of those: exact counts, random places."""
    cued = generator.sample(range(len(examples)), k=round(CUE_SHARE * len(examples)))
    right = round(CUE_AGREEMENT * len(cued))
    result = list(examples)
    for rank, index in enumerate(cued):
        example = examples[index]
        result[index] = _with_cue(example, example[2] if rank < right else _wrong(example, generator))
    return result


def _with_cue(example: Example, label: str) -> Example:
    premise, hypothesis, truth = example
    return premise, f"{hypothesis} {CUES[label]}", truth


def _wrong(example: Example, generator: random.Random) -> str:
    return generator.choice([label for label in LABELS if label != example[2]])


def _dataset(examples: list[Example]) -> datasets.Dataset:
    premises, hypotheses, labels = map(list, zip(*examples, strict=True))
    return datasets.Dataset.from_dict(
        {"premise": premises, "hypothesis": hypotheses, "label": labels}, features=FEATURES
    )
