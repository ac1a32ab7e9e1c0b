"""The one thing that executing programs cannot show: threads of one program that wait for each other.

``chunk_backward`` stores its weights to global memory, crosses a barrier and reads them back. ``ttsem`` runs a
program's threads as one, so that a missing barrier changes nothing; ``sentryward`` proves from the machine's own
assembly that no two threads touch an element unordered, in any schedule.
"""

import json
from pathlib import Path

import torch
from oracle import make_case
from sentryward import verify
from triton.backends.compiler import GPUTarget
from ttsem import harness

BARRIER = "    tl.debug_barrier()\n"


def launch_of(kernels, name, monkeypatch):
    """The launch of kernel ``name`` as the host code makes it, for two chunks of 32 of which the last is ragged."""
    launches, record_launch = [], harness.record_launch

    def noted(*args, **options):
        made = record_launch(*args, **options)
        launches.append(made.record)
        return made

    monkeypatch.setattr(harness, "record_launch", noted)
    case = make_case(50, 100, chunk_size=32, device="cuda")
    lse, scores = kernels.pairwise_mlp_forward(*case.operands, case.pairs)
    kernels.pairwise_mlp_backward(torch.ones_like(lse), lse, *case.operands, case.pairs, scores=scores)
    (launch,) = [launch for launch in launches if launch.fn_name == name]
    return launch


def proof(launch, folder):
    """``sentryward``'s answer for the assembly, grid and numbers of one launch."""
    target = GPUTarget("cuda", 90, 32)
    numbers, position = [], 0
    _, signature, _, _ = harness._specialize(launch.fn, launch.args, launch.kwargs, target)
    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        if not kind.startswith("*"):
            parameter = f"{launch.fn_name}_param_{position}"
            numbers.append({"parameter": parameter, "type": "u32", "value": int(launch.bound[name])})
        position += 1
    grid = [*launch.grid, 1, 1][:3]
    block = [32 * launch.kwargs["num_warps"], 1, 1]
    inputs = {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": grid, "block_dim": block},
        "arguments": numbers,
    }
    (folder / "kernel.ptx").write_text(harness._compile_asm(launch.fn, launch.args, launch.kwargs, target)["ptx"])
    (folder / "input.json").write_text(json.dumps(inputs))
    return verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=400)


def test_no_thread_reads_before_the_barrier(monkeypatch, tmp_path):
    from infobert_fast.kernels import pairwise_mlp

    answer = proof(launch_of(pairwise_mlp, "chunk_backward_kernel", monkeypatch), tmp_path)
    assert answer["result"] == "race_free", answer


def test_without_the_barrier_the_race_is_found(planted, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # one that is older may name the lines of another file
    launch = launch_of(planted("chunks.py", BARRIER, ""), "chunk_backward_kernel", monkeypatch)
    answer = proof(launch, tmp_path)
    assert answer["result"] == "potential_race", answer
    written, read = (answer["races"][0][side] for side in ("first", "second"))
    assert (written["mode"], read["mode"]) == ("write", "read")
    lines = Path(launch.fn.fn.__code__.co_filename).read_text().splitlines()
    assert "tl.store(g_ptr" in lines[written["location"]["line"] - 1]
