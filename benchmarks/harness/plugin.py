"""How every benchmark is run: gate, first call, memory, rounds on the device's clock, and the share of the roofline."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from infobert_fast.benchmarks.harness.measuring import DEVICE, Work, ceilings, clock, flush, machine, peak_mib

CANDIDATES: dict[str, Callable[..., Any]] = {}  # --candidate NAME=module:function


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--candidate",
        action="append",
        default=[],
        metavar="NAME=MODULE:FUNCTION",
        help="time another implementation too; its arguments are those of the suite's other implementations",
    )
    parser.addoption("--seconds", type=float, default=1.0, help="timed seconds a benchmark (a few rounds at least)")


def pytest_configure(config: pytest.Config) -> None:
    for given in config.getoption("--candidate"):
        name, _, place = given.partition("=")
        module, _, function = place.partition(":")
        if not (name and module and function):
            raise pytest.UsageError(f"--candidate was {given!r}; it must be NAME=MODULE:FUNCTION")
        try:
            CANDIDATES[name] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise pytest.UsageError(f"--candidate {given!r}: {error}") from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock, group=item.path.stem.removeprefix("bench_")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`implementation` runs over the module's IMPLEMENTATIONS and the candidates of the command line."""
    if "implementation" in metafunc.fixturenames:
        metafunc.parametrize("implementation", [*metafunc.module.IMPLEMENTATIONS, *CANDIDATES])


@pytest.fixture
def function(request: pytest.FixtureRequest, implementation: str) -> Callable[..., Any]:
    """The implementation by its name."""
    return CANDIDATES.get(implementation) or request.module.IMPLEMENTATIONS[implementation]


@pytest.fixture(scope="session")
def gates() -> dict[Any, str | None]:
    """What the gate said of each function that has passed through it."""
    return {}


@pytest.fixture
def gate(gates: dict[Any, str | None]) -> Callable[..., None]:
    """``gate(key, check)``: run ``check`` once a session for this key; where it fails, now or before, fail untimed."""

    def gate(key: Any, check: Callable[[], None]) -> None:
        if key not in gates:
            try:
                check()
                gates[key] = None
            except Exception as error:
                gates[key] = str(error) or type(error).__name__
        if gates[key] is not None:
            pytest.fail(f"not timed, because it is not correct: {gates[key]}", pytrace=False)

    return gate


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """``measure(call, work=None, least=3, **facts)``: the first call's time, memory, then rounds with a flushed cache,
    ``least`` of them however long one takes.
    """

    def measure(call: Callable[[], Any], *, work: Work | None = None, least: int = 3, **facts: Any) -> None:
        begin = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - begin
        start = clock()
        extra = peak_mib(call)
        once = clock() - start
        rounds = int(max(least, min(100, request.config.getoption("--seconds") / max(once, 1e-6))))
        benchmark.pedantic(call, setup=flush, rounds=rounds)
        benchmark.extra_info.update(facts, first_call_s=first, extra_mib=extra)
        if work is not None:
            benchmark.extra_info["roofline"] = work.seconds(ceilings()) / benchmark.stats.stats.median

    return measure


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """What is kept: medians and quartiles, the facts, the machine without its host's name."""
    rows = [
        {
            "group": row["group"],
            "name": row["name"],
            **(row["params"] or {}),
            **{name: row["stats"][name] for name in ("median", "q1", "q3", "rounds")},
            **row["extra_info"],
        }
        for row in output_json["benchmarks"]
    ]
    output_json.clear()
    output_json.update(machine=machine(), ceilings=ceilings(), rows=rows)
