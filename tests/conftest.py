"""What the floors share: a tiny NLI model on the generated corpus, real data, and how tests meet a missing GPU."""

import json
import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # read when triton is first imported, by whichever test file comes first
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` need a CUDA device; where there is none they say so."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def nli_folder(tmp_path_factory):
    """A folder with ``model/`` (a tiny RoBERTa and its tokenizer), ``train.jsonl`` and ``test.jsonl``."""
    from transformers import RobertaConfig, RobertaForSequenceClassification, set_seed

    from infobert_fast.data.demo import demo_corpus, demo_tokenizer
    from infobert_fast.data.labels import LABELS

    folder = tmp_path_factory.mktemp("nli")
    corpus = demo_corpus(size=96, eval_size=48)
    tokenizer = demo_tokenizer(corpus)
    set_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
            initializer_range=1.0,
            num_labels=3,
            id2label=dict(enumerate(LABELS)),
            label2id={word: i for i, word in enumerate(LABELS)},
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, name in (("train", "train"), ("test_clean", "test")):
        rows = [{**row, "label": LABELS[row["label"]]} for row in corpus[split]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


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
def squad_tokenizer():
    """A tokenizer of words and punctuation marks, as BERT's without pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "a and box blue cat dog does holds hold it is old red the turtle very what which who . ?"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*names, *words.split()])}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
