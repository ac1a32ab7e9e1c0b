"""Clean and adversarial sets by one name, and what each adversarial set is held against."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infobert_fast.data.mixtures import expand, find
from infobert_fast.data.source import FeverOrder, Source, SourceLike

__all__ = ["SUITES", "Member", "resolve", "suite_task"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One set of a suite: on the hub, in the folders that people unpack (without ending), and its clean counterpart."""

    name: str
    hub: Source | None
    files: tuple[str, ...]
    clean: str | None = None
    field: str | None = None


_ANLI = tuple(
    Member(
        f"anli-r{number}",
        Source("facebook/anli", split=f"test_r{number}"),
        (f"anli/test_r{number}", f"anli_v1.0/R{number}/test", f"anli/R{number}/test"),
        clean="mnli-m",
    )
    for number in (1, 2, 3)
)
# datasets no longer runs the script that the hub's adversarial SQuAD comes with; the hub keeps its output beside it.
_ADDSENT = tuple(
    Member(
        name.lower(),
        Source("stanfordnlp/squad_adversarial", config=name, split="validation", revision="refs/convert/parquet"),
        (f"adversarial_squad/sample1k-{file}", f"sample1k-{file}"),
        clean="squad",
    )
    for name, file in (("AddSent", "HCVerifyAll"), ("AddOneSent", "HCVerifySample"))
)
SUITES: dict[str, tuple[Member, ...]] = {
    "nli": (
        Member("snli", Source("stanfordnlp/snli", split="test"), ("snli/test", "snli_1.0/snli_1.0_test", "SNLI/test")),
        Member(
            "mnli-m",
            Source("nyu-mll/multi_nli", split="validation_matched"),
            ("mnli/dev_matched", "multinli_1.0/multinli_1.0_dev_matched", "MNLI/dev_matched"),
        ),
        Member(
            "mnli-mm",
            Source("nyu-mll/multi_nli", split="validation_mismatched"),
            ("mnli/dev_mismatched", "multinli_1.0/multinli_1.0_dev_mismatched", "MNLI/dev_mismatched"),
        ),
        *_ANLI,
        Member(
            "advglue-mnli",
            Source("AI-Secure/adv_glue", config="adv_mnli", split="validation"),
            ("advglue/dev",),
            clean="mnli-m",
            field="mnli",
        ),
        Member(
            "advglue-mnli-mm",
            Source("AI-Secure/adv_glue", config="adv_mnli_mismatched", split="validation"),
            ("advglue/dev",),
            clean="mnli-mm",
            field="mnli-mm",
        ),
        Member("cad-original", None, ("cad_nli/original_test",)),
        Member("cad-hypothesis", None, ("cad_nli/revised_hypothesis_test",), clean="cad-original"),
        Member("cad-premise", None, ("cad_nli/revised_premise_test",), clean="cad-original"),
    ),
    "qa": (
        Member(
            "squad",
            Source("rajpurkar/squad", split="validation"),
            ("squad/dev-v1.1", "dev-v1.1", "squad/dev-v1.1.rebuilt"),
        ),
        *_ADDSENT,
    ),
}


def suite_task(names: Sequence[str]) -> str | None:
    """The task of a suite that was asked for by its name; None for sources."""
    return names[0] if len(names) == 1 and names[0] in SUITES else None


def resolve(
    names: Sequence[SourceLike], *, data_dir: str | None = None, fever_order: FeverOrder = "reference"
) -> tuple[list[Source], dict[str, str]]:
    """The sets of a suite, or of sources of which the first is the clean one; and each set's clean counterpart.

    A suite is read from the hub, where all of its sets but the counterfactually revised ones are, or from the files
    below ``data_dir``; sets that are not there are left out, with a line in the log.

    Raises:
        ValueError: where two sources have one name.
        FileNotFoundError: where ``data_dir`` holds no set of the suite.
    """
    if len(names) == 1 and isinstance(names[0], str) and names[0] in SUITES:
        sources, clean = [], {}
        for member in SUITES[names[0]]:
            source = member.hub
            if data_dir is not None:
                path = find(data_dir, member.files)
                field = member.field if path is not None and ".jsonl" not in path.name else None
                source = None if path is None else Source(str(path), field=field)
            if source is None:
                logger.warning("suite %s: %s is not at hand and left out", names[0], member.name)
                continue
            sources.append(replace(source, name=member.name, fever_order=fever_order))
            if member.clean is not None:
                clean[member.name] = member.clean
        if not sources:
            wanted = [member.files[0] for member in SUITES[names[0]]]
            raise FileNotFoundError(f"`data_dir` {data_dir!r} holds no set of the suite {names[0]!r}, such as {wanted}")
        there = {source.name for source in sources}
        return sources, {name: other for name, other in clean.items() if other in there}
    sources = expand(names, fever_order=fever_order)
    return sources, {source.display_name: sources[0].display_name for source in sources[1:]}
