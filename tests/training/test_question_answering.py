"""Question answering through the whole step: any encoder, InfoBERT's terms over question and paragraph, real scores."""

import copy
import functools
import json

import pytest
import torch
import transformers

from infobert_fast import cli
from infobert_fast.data.qa import load_questions
from infobert_fast.training.question_answering import QuestionAnsweringTrainer, QuestionSet

ARTICLES = [
    ("The red box holds a cat.", "What does the red box hold?", "a cat"),
    ("The blue box holds a dog and a turtle. It is very old.", "What is it?", "very old"),
    ("A cat and a dog hold the blue box.", "Which box?", "the blue box"),
    ("The turtle is red.", "Who is red?", "The turtle"),
]


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """A file in SQuAD's form: four questions, and an adversarial variant of the first."""
    cases = [*((str(i), *case) for i, case in enumerate(ARTICLES))]
    cases.append(("0-high", ARTICLES[0][0] + " The blue box holds a dog.", *ARTICLES[0][1:]))
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": key, "question": asked, "answers": [{"text": text, "answer_start": context.index(text)}]}],
        }
        for key, context, asked, text in cases
    ]
    path = tmp_path_factory.mktemp("squad") / "train.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}))
    return str(path)


@pytest.fixture
def make_answerer(make_model):
    """As ``make_model``, with a start and an end logit per token, for the vocabulary of ``squad_tokenizer``."""

    def make(family="bert", **changes):
        classifier = make_model(family, vocab_size=25, pad_token_id=0, num_labels=2, **changes)
        kind = type(classifier).__name__.replace("SequenceClassification", "QuestionAnswering")
        torch.manual_seed(0)
        return getattr(transformers, kind)(classifier.config)

    return make


@pytest.fixture
def make_qa_trainer(make_arguments, squad, squad_tokenizer):
    def make(model, **settings):
        part = QuestionSet.cut(load_questions(squad), squad_tokenizer, max_length=30, doc_stride=4)
        return QuestionAnsweringTrainer(
            model,
            make_arguments(**settings),
            train_dataset=part.windows,
            eval_questions={"dev": part},
            processing_class=squad_tokenizer,
            data_collator=transformers.DataCollatorWithPadding(squad_tokenizer),
        )

    return make


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "electra", "albert", "distilbert", "modernbert"])
def test_a_step_moves_every_parameter(make_answerer, make_qa_trainer, family):
    model = make_answerer(family)
    before = copy.deepcopy(dict(model.named_parameters()))
    trainer = make_qa_trainer(
        model, version=6, alpha=0.1, beta=1e-3, adv_steps=2, max_steps=1, learning_rate=0.05, critic_hidden_dim=20
    )
    trainer.train()
    still = {name for name, start in before.items() if torch.equal(model.get_parameter(name), start)}
    assert not {name for name in still if "position_embeddings" not in name}
    terms = trainer.state.log_history[0]
    assert {"task_loss", "ib_upper_bound", "afr_lower_bound"} <= set(terms)


def test_the_task_loss_is_the_mean_cross_entropy_of_start_and_end(make_answerer, make_qa_trainer):
    model = make_answerer(dropout=0.0)
    trainer = make_qa_trainer(model, version=-1, adv_steps=1, adv_init_mag=0.0, max_steps=1, learning_rate=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["start_positions"].tolist() != [0] * len(batch["start_positions"])
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    rows = torch.arange(len(batch["input_ids"]))
    start = out.start_logits.log_softmax(1)[rows, batch["start_positions"]]
    end = out.end_logits.log_softmax(1)[rows, batch["end_positions"]]
    trainer.train()
    assert trainer.state.log_history[0]["task_loss"] == pytest.approx(-float(start.mean() + end.mean()) / 2, rel=1e-5)


def test_it_learns_its_questions_and_scores_the_worst_variant(make_answerer, make_qa_trainer):
    model = make_answerer(dropout=0.0)
    settings = {"version": 6, "alpha": 1e-3, "beta": 1e-4, "adv_steps": 2, "adv_lr": 1e-2, "adv_init_mag": 1e-2}
    trainer = make_qa_trainer(
        model, max_steps=60, optim="adamw_torch", learning_rate=3e-3, per_device_train_batch_size=6, **settings
    )
    before = trainer.evaluate()
    trainer.train()
    # Answers are read in the order of the windows, whatever order training groups them into.
    trainer.args.train_sampling_strategy, trainer.args.per_device_eval_batch_size = "group_by_length", 2
    after = trainer.evaluate()
    assert after["eval_dev_exact_match"] == after["eval_dev_f1"] == 100
    assert before["eval_dev_exact_match"] < 50
    assert after["eval_dev_loss"] < before["eval_dev_loss"]


def test_the_command_trains_scores_and_saves(make_answerer, squad, squad_tokenizer, tmp_path, capsys):
    make_answerer().save_pretrained(tmp_path / "model")
    squad_tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", str(tmp_path / "model"), "--train_data", squad, "--eval_data", f"dev={squad}"]
    arguments += ["--max_length", "30", "--doc_stride", "4", "--output_dir", str(out), "--max_steps", "1"]
    arguments += ["--use_cpu", "True", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "True"]
    assert cli.main(["train", "--task", "qa", *arguments]) == 0
    results = json.loads((out / "all_results.json").read_text())
    assert 0 <= results["eval_dev_exact_match"] <= results["eval_dev_f1"] <= 100
    transformers.AutoModelForQuestionAnswering.from_pretrained(out)
    assert cli.main(["train", "--task", "qa", "--streaming", "True", "--max_steps", "1", *arguments]) == 2
    assert "`streaming` is set; question answering" in capsys.readouterr().err


class Labelled(torch.nn.Module):
    """A question answerer that takes start and end as columns of ``labels``, as the literal step gives them."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, labels, **kwargs):
        return self.inner(start_positions=labels[:, 0], end_positions=labels[:, 1], **kwargs)


def test_the_gradient_is_the_literal_steps(
    make_answerer, make_qa_trainer, make_critic, literal_step, movement, gradients, assert_close
):
    """Every term, two passes, padding in the batch: the perturbation must stay zero there, or the softmax sees it."""
    settings = {"version": 6, "alpha": 0.3, "beta": 0.02, "cl": 0.25, "ch": 0.9}
    settings |= {"adv_steps": 2, "adv_lr": 0.5, "adv_max_norm": 0.0, "norm_type": "l2", "negatives": "chunk"}
    model = make_answerer("roberta", dropout=0.0)
    critic = make_critic(model)
    trainer = make_qa_trainer(
        model, **settings, adv_init_mag=0.0, critic_hidden_dim=20, max_steps=1, per_device_train_batch_size=5
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all()
    twin, critic = copy.deepcopy((model, critic))
    labels = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    ids = batch["input_ids"]
    # RoBERTa counts positions over tokens, from its padding number on
    positions = torch.where(ids != 0, (ids != 0).cumsum(1), 0)
    twin.forward = functools.partial(twin.forward, position_ids=positions)
    twin.config.model_type = "as given"
    delta = torch.zeros(*ids.shape, 32)
    literal = {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}
    literal_step(Labelled(twin), literal, delta, settings, critic=critic)
    expected = {name: value for name, value in gradients(twin).items() if not name.startswith("mi_estimator")}
    expected |= {f"mi_estimator.{name}": value for name, value in gradients(critic).items()}
    assert_close(movement(model, trainer.train), expected, 2e-5)
