"""Launch tables in files: measured configurations by architecture, which take the place of ``launch.py``'s plans.

{"format": "infobert-fast launch table 1",
 "sm_90": {"short": {"rows": 16, "warps": 1, "programs": 4096}, "wide": {...}, "device": "...", "triton": "3.9.0"}}
"""

import json
import re
from typing import NamedTuple

FORMAT = "infobert-fast launch table 1"
ALLOWED = {"rows": (8, 16, 32), "warps": (1, 2, 4, 8), "programs": range(1, 65537)}


class Config(NamedTuple):
    """Sizes of one launch. A column tile is four times as wide as the program has threads."""

    rows: int  # global rows per score program; 16 x 4 scores per thread
    warps: int  # of a score program
    programs: int  # as many as fill the chip several times over; decides how far one row's columns are split


class Plan(NamedTuple):
    """Configurations of both regimes of one architecture."""

    short: Config  # rows of fewer than WIDE columns
    wide: Config


def read_table(path):
    """{(major, minor): Plan} of a file.

    Raises:
        ValueError, OSError: naming the file, the entry, what it was and what is allowed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"the launch table {path} is no JSON ({error}); write it anew by `infobert tune`") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"the launch table {path} has the format {found!r}; it should be {FORMAT!r}: run `infobert tune` again"
        )
    return {_capability(path, chip): _plan(path, chip, plan) for chip, plan in content.items() if chip != "format"}


def table_entry(plan, **facts):
    """What a file holds of one architecture; ``facts`` are for its readers."""
    return {name: config._asdict() for name, config in plan._asdict().items()} | facts


def chip_name(capability):
    return f"sm_{capability[0]}{capability[1]}"


def _capability(path, chip):
    match = re.fullmatch(r"sm_(\d+)(\d)", chip)
    if match is None:
        raise ValueError(f"the launch table {path} has an entry {chip!r}; entries are named sm_80, sm_90, ...")
    return int(match[1]), int(match[2])


def _plan(path, chip, plan):
    configs = []
    for regime in Plan._fields:
        given = plan.get(regime) if isinstance(plan, dict) else None
        if not isinstance(given, dict) or set(given) != set(Config._fields):
            raise ValueError(
                f"the launch table {path} has {chip}.{regime} = {given!r}; it needs {', '.join(Config._fields)}"
            )
        for name, allowed in ALLOWED.items():
            if type(given[name]) is not int or given[name] not in allowed:
                span = f"1 to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
                raise ValueError(
                    f"the launch table {path} has {chip}.{regime}.{name} = {given[name]!r}; it may be {span}"
                )
        configs.append(Config(**given))
    return Plan(*configs)
