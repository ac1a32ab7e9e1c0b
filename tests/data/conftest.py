"""Fixtures of the data tests: caches of their own, and the real corpora where they are present."""

import json
import os
from pathlib import Path

import datasets
import pytest

from infobert_fast.data.demo import demo_corpus, demo_tokenizer


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep what the tests load out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def real_data():
    """Turn a path inside the folder of real corpora into a full one; skip the test where it is absent."""
    root = Path(os.environ.get("INFOBERT_FAST_DATA", "../shared/data"))

    def find(path):
        if not (root / path).is_file():
            pytest.skip(f"no real data: {root / path} is absent; set INFOBERT_FAST_DATA to the folder that has it")
        return str(root / path)

    return find


@pytest.fixture(scope="session")
def corpus():
    return demo_corpus(size=600, eval_size=60)


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return demo_tokenizer(corpus)


@pytest.fixture
def jsonl(tmp_path):
    """Write rows to a JSON-lines file and return its path."""

    def write(*rows, name="dev.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
