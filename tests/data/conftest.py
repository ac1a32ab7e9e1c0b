"""Fixtures of the data tests: caches of their own, a generated corpus and files to write."""

import json

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
