"""What is read and tokenised once is kept, under a name that changes with everything it depends on.

``datasets`` names a cached result by hashing the function that made it; of a function in an importable module it hashes
the name alone, so that a changed function would be served its predecessor's result. Here the name is ours: contents,
settings, this package's data code and the libraries' versions.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

__all__ = ["cached_rows", "file_key", "fingerprint", "tokenizer_key"]


def fingerprint(*parts: Any) -> str:
    """A name for what follows from ``parts`` (plain data), our data code and the libraries below it."""
    text = json.dumps([*parts, _code()], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_key(path: str) -> str:
    """A name for a file's content, whatever its path and date."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for what a tokenizer does to a text, whatever padding and truncation it was last called with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = [tokenizer.get_vocab(), tokenizer.init_kwargs]
    else:
        content = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    names = [type(tokenizer).__name__, tokenizer.truncation_side, tokenizer.model_input_names]
    return fingerprint(content, tokenizer.special_tokens_map, names)


def cached_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], features: datasets.Features, key: str
) -> datasets.Dataset:
    """The rows as a dataset, read from the cache where ``key`` is known. Raises what ``rows`` raises."""
    try:
        return datasets.Dataset.from_generator(rows, features=features, fingerprint=key)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


@functools.cache
def _code() -> list[str]:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return [digest.hexdigest(), *(version(name) for name in ("datasets", "tokenizers", "transformers"))]
