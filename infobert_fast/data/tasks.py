"""The classification and regression tasks: NLI, GLUE's and safety, with the names that their corpora use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import datasets

from infobert_fast.data.labels import LABELS, SPELLINGS

__all__ = ["GLUE", "NLI", "NLI2", "QUESTION_ANSWERING", "TASKS", "TASK_NAMES", "Task", "task_named"]

QUESTION_ANSWERING = "qa"


@dataclass(frozen=True)
class Task:
    """One task of single texts or pairs.

    Args:
        name: GLUE's, or one of ours: ``nli``, ``nli2`` (entailed or not), ``safety``.
        texts: the columns of one text or two, in our form.
        labels: the classes in their order; empty for regression.
        metrics: GLUE's measures of it, the first being its headline; see :mod:`infobert_fast.metrics.glue`.
        layouts: what files and the hub call the columns: the texts and the label, in the order in which they are tried.
        spellings: other words for the classes.
        header: the columns of a table that is published without its header.
        finer: labels of models that tell more classes apart, and the class that each falls into.
        numbered: whether published files have numbers for the classes, so that nothing is guessed in reading them.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    layouts: tuple[tuple[str, ...], ...] = ()
    spellings: Mapping[str, int] = field(default_factory=dict)
    header: tuple[str, ...] | None = None
    finer: Mapping[str, int] = field(default_factory=dict)
    numbered: bool = False

    @property
    def words(self) -> dict[str, int]:
        """Every folded spelling of a class, and its index."""
        return {**{label: index for index, label in enumerate(self.labels)}, **self.spellings}

    @property
    def features(self) -> datasets.Features:
        """The columns of a loaded corpus."""
        label = datasets.ClassLabel(names=list(self.labels)) if self.labels else datasets.Value("float32")
        return datasets.Features({**{text: datasets.Value("string") for text in self.texts}, "label": label})

    def columns(self, fever_order: str = "reference") -> tuple[tuple[str, ...], ...]:
        """``layouts``, with FEVER's pairs as (claim, evidence) for "reference" and (evidence, claim) for "anli"."""
        if fever_order == "reference":
            return self.layouts
        return tuple(
            (layout[1], layout[0], layout[2]) if layout[:2] in _FEVER_PAIRS else layout for layout in self.layouts
        )


_FEVER_PAIRS = (("claim", "evidence"), ("claim", "evidence_sentence"), ("query", "context"))

NLI = Task(
    "nli",
    ("premise", "hypothesis"),
    LABELS,
    layouts=(
        ("premise", "hypothesis", "label"),
        ("query", "context", "label"),  # FEVER-NLI as the ANLI authors distribute it
        ("context", "hypothesis", "label"),  # ANLI's JSON lines
        *((*pair, label) for pair in _FEVER_PAIRS[:2] for label in ("label", "gold_label")),  # FEVER and its offspring
        ("sentence1", "sentence2", "gold_label"),  # SNLI's and MultiNLI's files, GLUE's MNLI
        ("sentence1", "sentence2", "label"),
        ("orig_preimise", "adv_hypothesis", "true_label"),  # adversarial files in TextFooler's form, spelled so
        ("orig_premise", "adv_hypothesis", "true_label"),
        ("adv_premise", "orig_hypothesis", "true_label"),
    ),
    spellings=SPELLINGS,
)

# Two-way entailment, as HANS has it. A model of three classes answers it: neutral and contradiction entail nothing.
_TWO_WAY = dict.fromkeys(("non-entailment", "not entailment"), 1)
_THREE_WAY = {"neutral": 1, "contradiction": 1}
NLI2 = Task(
    "nli2",
    NLI.texts,
    ("entailment", "not_entailment"),
    layouts=NLI.layouts,
    spellings=_TWO_WAY,
    finer=_THREE_WAY,
)


def _pair(first: str, second: str, *labels: str) -> tuple[tuple[str, ...], ...]:
    return tuple((first, second, label) for label in labels)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        NLI,
        Task(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews_correlation", "accuracy"),
            layouts=(("sentence", "label"),),
            header=("source", "label", "mark", "sentence"),
            numbered=True,
        ),
        Task("sst2", ("sentence",), ("negative", "positive"), layouts=(("sentence", "label"),), numbered=True),
        Task(
            "mrpc",
            ("sentence1", "sentence2"),
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            layouts=(("sentence1", "sentence2", "label"), ("#1 String", "#2 String", "Quality")),
            numbered=True,
        ),
        Task(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            layouts=_pair("question1", "question2", "label", "is_duplicate"),
            numbered=True,
        ),
        Task(
            "stsb",
            ("sentence1", "sentence2"),
            (),
            ("pearson", "spearman"),
            layouts=_pair("sentence1", "sentence2", "label", "score"),
        ),
        Task("mnli", NLI.texts, NLI.labels, layouts=NLI.layouts, spellings=SPELLINGS),
        Task(
            "qnli",
            ("question", "sentence"),
            ("entailment", "not_entailment"),
            layouts=_pair("question", "sentence", "label"),
            spellings=_TWO_WAY,
        ),
        Task(
            "rte",
            ("sentence1", "sentence2"),
            ("entailment", "not_entailment"),
            layouts=_pair("sentence1", "sentence2", "label"),
            spellings=_TWO_WAY,
            finer=_THREE_WAY,
        ),
        Task(
            "wnli",
            ("sentence1", "sentence2"),
            ("not_entailment", "entailment"),
            layouts=_pair("sentence1", "sentence2", "label"),
            numbered=True,
        ),
        NLI2,
        Task(
            "safety",
            ("text",),
            ("safe", "unsafe"),
            ("f1", "accuracy"),
            layouts=(("text", "label"), ("prompt", "label")),
            spellings={
                **dict.fromkeys(("benign", "harmless", "non-toxic"), 0),
                **dict.fromkeys(("harmful", "toxic", "injection", "jailbreak"), 1),
            },
        ),
    )
}
GLUE = tuple(name for name in TASKS if name not in ("nli", "nli2", "safety"))
TASK_NAMES = (*TASKS, QUESTION_ANSWERING)


def task_named(name: str) -> Task:
    """The task of this name. Raises ``ValueError`` for any other."""
    if name not in TASKS:
        raise ValueError(f"`task` was {name!r}; it must be one of {', '.join(TASK_NAMES)}")
    return TASKS[name]
