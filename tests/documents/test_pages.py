"""What the documentation shows beside commands: Python that runs, and the public names."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.data.demo import demo_corpus
from infobert_fast.data.tokenization import tokenize

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    f"{page.name}:{number}": code
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL), 1
    )
}


@pytest.fixture
def given(reader):
    """What an example takes for granted, by the names that the pages give it."""
    tokenizer = AutoTokenizer.from_pretrained("MODEL")
    features = torch.randn(4, 6, 8, requires_grad=True)
    return {
        **dict(zip(("images", "texts", "first", "second"), features, strict=True)),
        "group": torch.tensor([0, 0, 1, 1, 2, 2]),
        "model": AutoModelForSequenceClassification.from_pretrained("MODEL"),
        "tokenizer": tokenizer,
        "train": tokenize(demo_corpus(size=6, eval_size=3)["train"], tokenizer, 40),
    }


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_examples(example, given, monkeypatch):
    code = EXAMPLES[example]
    if "deepspeed.initialize" in code:  # needs ranks: tests/test_examples.py runs the file it is taken from
        compile(code, example, "exec")
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # several GPUs would be refused
    try:
        exec(compile(code, example, "exec"), given)
    except NameError as error:
        pytest.fail(f"{example}: {error}; if the name is the reader's, `given` says what it may be")


def test_public_names_are_listed():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for section in text.split("\n## `")[1:]:
        module = importlib.import_module(section.split("`")[0])
        public = {
            name
            for name in module.__all__
            if inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value)
        }
        assert public <= set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)), module.__name__
