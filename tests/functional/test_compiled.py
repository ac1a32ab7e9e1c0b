"""The compiled block arithmetic: the same function, one compilation for all sizes, and never unless asked for."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from contrastive_cases import F64, assert_no_worse_than_eager, assert_same, critic_inputs, indices, value_and_grads

from infobert_fast import InfoNCE, functional, reference
from infobert_fast.functional import compiled, info_nce, nwj, streaming

linux = pytest.mark.skipif(sys.platform != "linux", reason="a C++ compiler is only counted on there")


@pytest.fixture
def recompilations():
    """How many graphs were compiled so far; none is left over from other tests."""
    torch._dynamo.reset()
    compiled._compile.cache_clear()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@linux
def test_equals_the_oracle_with_one_compilation_for_all_sizes(recompilations, monkeypatch):
    monkeypatch.setattr(compiled.Compiled, "PAIRS", 50)  # whole and ragged blocks, and blocks of one row
    for pairs, chunk_size in ((1, None), (2, None), (33, None), (64, None), (65, None), (7, 7), (32, 7), (33, 4)):
        index = indices(pairs, pairs, 4)
        options = {"local_index": index[0], "pair_index": index[1], "chunk_size": chunk_size}
        inputs = critic_inputs(pairs, 4, hidden=5 + pairs)
        got = value_and_grads(functools.partial(info_nce, implementation="compiled", **options), inputs)
        assert_same(got, value_and_grads(functools.partial(reference.info_nce, **options), inputs))
    assert recompilations() == 4, "scores and sums, of one problem and of several"
    inputs = critic_inputs(33, 33)
    with torch.autocast("cpu", torch.bfloat16):  # a backward within autocast too
        got = value_and_grads(functools.partial(nwj, implementation="compiled"), inputs)
    assert_same(got, value_and_grads(reference.nwj, inputs))
    assert recompilations() == 4


@linux
def test_is_no_worse_than_eager(recompilations):
    fast = functools.partial(info_nce, implementation="compiled")
    inputs = critic_inputs(130, 130, hidden=300, x_dim=24, y_dim=16)
    assert_no_worse_than_eager(fast, reference.info_nce, inputs, torch.float32)
    first, again = (value_and_grads(fast, [t.float() for t in inputs], torch.float32) for _ in range(2))
    assert all(torch.equal(f, a) for f, a in zip(first, again, strict=True))


@linux
def test_nan_in_gives_nan_out(recompilations):
    for position in range(6):
        inputs = [tensor.float() for tensor in critic_inputs(9, 9)]
        inputs[position].view(-1)[-1] = torch.nan
        outputs = value_and_grads(functools.partial(info_nce, implementation="compiled"), inputs, torch.float32)
        assert outputs[0].isnan()
        assert all(grad.isnan().any() for grad in outputs[1:])


def test_a_single_row_stays_within_a_block(monkeypatch):
    """Uncompiled, 100,000 pairs of one global row would hold every hidden unit at once."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    a, b = torch.empty(1, 100_000, 304), torch.empty(1, 1, 304)
    assert compiled.Compiled(a, b).pairs * 304 <= streaming.block_elements(a.device)
    assert compiled.Compiled(b, a).pairs * 304 <= streaming.block_elements(a.device)
    inputs = critic_inputs(40, 1)
    options = {"pair_index": torch.zeros(40, dtype=torch.int64)}
    got = value_and_grads(functools.partial(info_nce, implementation="compiled", **options), inputs)
    assert_same(got, value_and_grads(functools.partial(reference.info_nce, **options), inputs))


def test_nothing_compiles_unless_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    compiled._compile.cache_clear()
    inputs = critic_inputs(9, 9)
    for implementation in ("auto", "torch", "reference"):
        info_nce(*inputs, implementation=implementation)


def test_a_missing_compiler_is_named(monkeypatch):
    def broken(function, **options):
        def call(*_):
            raise OSError("g++")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    compiled._compile.cache_clear()
    with pytest.raises(RuntimeError, match=r"`implementation` was 'compiled', but .*C\+\+ compiler.*use 'torch'"):
        info_nce(*critic_inputs(9, 9), implementation="compiled")
    compiled._compile.cache_clear()


def test_functions_without_loops_refuse():
    y = torch.zeros(3, 4)
    message = "`implementation` was 'compiled', but this function has nothing to compile; use 'torch'"
    for call in (functional.club, lambda y, **options: functional.separable_info_nce(y, y, **options)):
        with pytest.raises(ValueError, match=message):
            call(y, implementation="compiled")


def test_inside_a_compiled_graph_the_loops_are_part_of_it():
    torch._dynamo.reset()
    critic = InfoNCE(7, 5, 8, implementation="compiled").double()
    x, y = critic_inputs(9, 9)[:2]
    whole = torch.compile(critic, backend="eager", fullgraph=True)
    expected = reference.info_nce(x, y, *critic.parameters())
    torch.testing.assert_close(whole(x, y), expected, rtol=1e-11, atol=0)
    assert x.dtype == F64
