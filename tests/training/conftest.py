"""Tiny encoders, batches and trainers; and InfoBERT's step written out literally, two full backwards a pass."""

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from infobert_fast import CLUB, InfoBertArguments, InfoBertTrainer, InfoNCE, functional, reference
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.critic import attach_critic
from infobert_fast.training.models.forward import Batch, PerturbedModel

VOCABULARY, HIDDEN, LONGEST = 60, 32, 24

COMMON = {"vocab_size": VOCABULARY, "num_labels": 3, "pad_token_id": 1}
BERT_LIKE = {
    **COMMON,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # so that two layers of 32 are not nearly constant functions of their input
}
# family: (prefix of its classes, sizes, the names of its dropout rates)
FAMILIES = {
    "bert": ("Bert", BERT_LIKE, ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")),
    "roberta": ("Roberta", BERT_LIKE, ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")),
    "deberta-v2": (
        "DebertaV2",
        {**BERT_LIKE, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
    "electra": ("Electra", {**BERT_LIKE, "embedding_size": 16}, ("hidden_dropout_prob", "classifier_dropout")),
    "albert": ("Albert", {**BERT_LIKE, "embedding_size": 16}, ("hidden_dropout_prob", "classifier_dropout_prob")),
    "distilbert": (
        "DistilBert",
        {**COMMON, "dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 40},
        ("dropout", "attention_dropout", "seq_classif_dropout"),
    ),
    "gpt2": (
        "GPT2",
        {**COMMON, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.2},
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "llama": ("Llama", {**BERT_LIKE, "num_key_value_heads": 1}, ("attention_dropout",)),
    "qwen3": ("Qwen3", {**BERT_LIKE, "num_key_value_heads": 1, "head_dim": 16}, ("attention_dropout",)),
    "modernbert": (
        "ModernBert",
        {**BERT_LIKE, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 8, "reference_compile": False},
        ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout"),
    ),
}


@pytest.fixture(autouse=True)
def own_random_state():
    """Each test draws from the same start, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def make_model() -> Callable[..., transformers.PreTrainedModel]:
    """A tiny classifier of an architecture, with dropout on in hidden states and attention unless asked otherwise."""

    def make(family="bert", *, dropout=0.2, dtype=torch.float32, attention="sdpa", seed=0, **changes):
        prefix, sizes, rates = FAMILIES[family]
        attention = "eager" if family == "deberta-v2" else attention  # it has no other
        config = getattr(transformers, f"{prefix}Config")(
            **{**sizes, **dict.fromkeys(rates, dropout), **changes}, attn_implementation=attention
        )
        torch.manual_seed(seed)
        model = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
        return model.to(dtype).train()

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[dict[str, Any]]]:
    """Labelled sentences of the given lengths; without lengths, of 3 to 11 tokens."""

    def make(count=8, *, lengths=None, seed=0):
        random = np.random.RandomState(seed)
        lengths = random.randint(3, 12, size=count).tolist() if lengths is None else lengths
        return [
            {"input_ids": random.randint(3, VOCABULARY, size=n).tolist(), "labels": int(random.randint(3))}
            for n in lengths
        ]

    return make


@pytest.fixture
def pad() -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """The plainest collator: padding on the right with the models' pad token."""

    def collate(examples):
        longest = max(len(example["input_ids"]) for example in examples)
        missing = [longest - len(example["input_ids"]) for example in examples]
        return {
            "input_ids": torch.tensor([e["input_ids"] + [1] * m for e, m in zip(examples, missing, strict=True)]),
            "attention_mask": torch.tensor([[1] * (longest - m) + [0] * m for m in missing]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    return collate


@pytest.fixture
def make_arguments(tmp_path) -> Callable[..., InfoBertArguments]:
    """Arguments of a silent CPU run whose parameters move by exactly minus the gradient: SGD, rate 1, no clipping."""

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "optim": "sgd",
            "learning_rate": 1.0,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        return InfoBertArguments(**{**settings, **changes})

    return make


@pytest.fixture
def make_trainer(make_arguments, pad) -> Callable[..., InfoBertTrainer]:
    """A trainer over the plain collator; keywords of the trainer are taken out, the others are arguments."""

    def make(model, examples, **settings):
        names = ("eval_dataset", "model_init", "callbacks", "data_collator", "compute_metrics", "processing_class")
        own = {name: settings.pop(name) for name in names if name in settings}
        own.setdefault("data_collator", pad)
        return InfoBertTrainer(model, make_arguments(**settings), train_dataset=examples, **own)

    return make


@pytest.fixture
def gradients() -> Callable[[torch.nn.Module], dict[str, torch.Tensor]]:
    """Copies of a module's gradients by parameter name; a parameter without one counts as zero."""

    def read(module):
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()
        }

    return read


@pytest.fixture
def movement() -> Callable[..., dict[str, torch.Tensor]]:
    """What a call takes from each parameter: under plain SGD with rate 1, the gradient of its one step."""

    def measure(module, act):
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        act()
        return {name: before[name] - parameter.detach() for name, parameter in module.named_parameters()}

    return measure


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Two dictionaries of tensors agree entry by entry, and hold something other than zeros."""

    def check(actual, expected, tolerance):
        assert actual.keys() == expected.keys()
        assert any(bool(value.any()) for value in expected.values())
        for name in expected:
            torch.testing.assert_close(
                actual[name], expected[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )

    return check


@pytest.fixture
def as_batch() -> Callable[..., Batch]:
    """A collated batch as a step takes it."""

    def make(inputs, weight=1.0, lengths=None):
        lengths = inputs["attention_mask"].sum(1).tolist() if lengths is None else lengths
        return Batch(inputs, lengths, weight)

    return make


@pytest.fixture
def make_runner() -> Callable[..., Runner]:
    """What the trainer hands to a step, as a script without a trainer would make it; keywords replace its methods."""

    def make(model, **methods):
        runner = Runner(PerturbedModel(model))
        for name, method in methods.items():
            setattr(runner, name, method)
        return runner

    return make


@pytest.fixture
def literal_step() -> Callable[..., dict[str, float]]:
    """The step as it is defined, with nothing of ours in it but the specification; gradients are left in ``.grad``.

    Two full backwards a pass; dropout repeated by setting the generator back; pairs listed, shuffled, cut and
    concatenated. ``settings`` holds the published names. ``delta`` is the random start. ``feature`` says which state
    stands for a sentence. A decoder looks for its last token in the ids, so that it gets them: with ``feature="last"``
    delta is added where the embeddings leave their module.
    """

    def step(model, batch, delta, settings, *, critic=None, club=None, partners=None, shuffle_seed=42, scale=1.0,
             feature="first"):  # fmt: skip
        s = SimpleNamespace(**settings)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        kept = mask.bool()
        previous = getattr(s, "anchor_source", "current") == "previous"
        whole = None
        sums = {"task_loss": 0.0, "ib_upper_bound": 0.0, "afr_lower_bound": 0.0}
        state = torch.get_rng_state()
        for k in range(s.adv_steps):
            torch.set_rng_state(state)
            delta = delta.detach().clone().requires_grad_()
            extra = {}
            if model.config.model_type == "roberta":  # positions count from 2 on, over tokens
                extra["position_ids"] = torch.where(ids != 1, (ids != 1).cumsum(1) + 1, 1)
            words = model.get_input_embeddings()
            if feature == "last":
                extra["input_ids"] = ids
                hook = words.register_forward_hook(lambda module, args, output, delta=delta: output + delta)
            else:
                extra["inputs_embeds"] = words(ids) + delta
            out = model(attention_mask=mask, labels=batch["labels"], output_hidden_states=True, **extra)
            if feature == "last":
                hook.remove()
            h0, last = out.hidden_states[0], out.hidden_states[-1]
            tokens = [row[keep] for row, keep in zip(last, kept, strict=True)]
            z = torch.stack([{"first": row[0], "last": row[-1], "mean": row.mean(0)}[feature] for row in tokens])

            first = out.loss / s.adv_steps
            sums["task_loss"] += out.loss.item() / s.adv_steps
            if s.version in (0, 1, 2, 3, 5, 6):
                if s.version in (0, 1):
                    bound = learned_bound(club, s.version, h0, last, z, mask)
                else:
                    rows = h0[kept] if s.version in (3, 6) else z
                    bound = reference.club(rows) if partners is None else reference.club_sampled(rows, partners[k])
                first = first + s.beta * bound / s.adv_steps
                sums["ib_upper_bound"] += bound.item() / s.adv_steps
            (scale * first).backward(retain_graph=True)
            g = delta.grad.clone()
            ranking = whole if previous and k else g

            if s.version in (4, 5, 6):
                pairs = []
                for i in range(len(ids)):
                    positions = reference.anchor_indices(ranking[i : i + 1], mask[i : i + 1], s.cl, s.ch).tolist()
                    pairs += [(h0[i, t], z[i]) for t in positions]
                if pairs:
                    if s.negatives == "chunk":
                        order = np.arange(len(pairs))
                        np.random.RandomState(shuffle_seed).shuffle(order)
                        pairs = [pairs[p] for p in order]
                    size = len(ids) if s.negatives == "chunk" else len(pairs)
                    w1, b1, w2, b2 = critic.parameters()
                    bounds = []
                    for start in range(0, len(pairs), size):
                        chunk = pairs[start : start + size]
                        x, y = torch.stack([x for x, _ in chunk]), torch.stack([y for _, y in chunk])
                        bounds.append(reference.info_nce(x, y, w1, b1, w2.flatten(), b2))
                    bound = sum(bounds) / len(bounds)
                    sums["afr_lower_bound"] += bound.item() / s.adv_steps
                    (scale * -s.alpha * bound / s.adv_steps).backward()
            whole = delta.grad.clone()  # of both terms
            ascent = whole if previous else g
            delta = reference.freelb_step(delta.detach(), ascent, mask, s.adv_lr, s.adv_max_norm, s.norm_type)
        return sums

    def learned_bound(club, version, h0, last, z, mask):
        """One likelihood step on detached features, then the bound with the network's weights detached."""
        if version == 1:
            x, y = h0[mask.bool()], last[mask.bool()]
        else:
            padded = torch.zeros(len(h0), LONGEST, h0.shape[-1], dtype=h0.dtype)
            for i, keep in enumerate(mask.bool()):
                padded[i, : int(keep.sum())] = h0[i, keep]
            x, y = padded.flatten(1), z
        club.optimizer.zero_grad()
        mu, logvar = club.p_mu(x.detach()), club.p_logvar(x.detach())
        (-reference.gaussian_log_likelihood(mu, logvar, y.detach())).backward()
        club.optimizer.step()
        frozen = copy.deepcopy([club.p_mu, club.p_logvar])
        for network in frozen:
            network.requires_grad_(False)
        return reference.gaussian_club(frozen[0](x), frozen[1](x), y)

    return step


@pytest.fixture
def make_critic() -> Callable[..., InfoNCE]:
    """Attach a critic whose scores differ from pair to pair, so that its bound and gradients are not nearly zero."""

    def make(model, hidden_dim=20, seed=7):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = attach_critic(model, hidden_dim)
            for parameter in critic.parameters():
                torch.nn.init.normal_(parameter, std=0.4)
        return critic

    return make


@pytest.fixture
def make_club() -> Callable[[int], CLUB | None]:
    """The learned bound of version 0 or 1 in float64."""

    def make(version):
        if version not in (0, 1):
            return None
        torch.manual_seed(3)
        return CLUB(HIDDEN if version == 1 else HIDDEN * LONGEST, HIDDEN).double()

    return make


@pytest.fixture
def compact_partners() -> Callable[..., list[torch.Tensor]]:
    """The partners that the sampled bound draws in each pass, as row numbers among the rows that count."""

    def draw(mask, seed, passes):
        generator = torch.Generator().manual_seed(seed ^ 1)
        flat = mask.reshape(-1).bool()
        number = torch.cumsum(flat, 0) - 1
        return [number[functional.sample_rows(mask, generator)][flat] for _ in range(passes)]

    return draw


@pytest.fixture
def count_calls() -> Callable[..., list[int]]:
    """Wrap a method so that its calls are counted."""

    def wrap(monkeypatch, owner, name):
        calls = []
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*args, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return calls

    return wrap
