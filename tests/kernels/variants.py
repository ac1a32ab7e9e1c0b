"""How many variants of each kernel 200 random batches compile: Triton's own keys, as in ``launches.py``; nothing runs.

A variant is compiled for each type, alignment and constant that a launch's arguments show; one that comes with a
batch's counts would stall a run, and every rank waits for it. A mode is what the host code chooses: the kernel's
``constexpr`` parameters, what is None, the number of warps, and how wide rows are.
"""

import random
from collections import defaultdict
from types import SimpleNamespace

import launches
import torch
from launches import draw

from infobert_fast.kernels import chunk_bound, pairwise_mlp, separable
from infobert_fast.kernels.pairs import Pairs, Terms

UNITS, BATCHES = 12, 200
seen = defaultdict(set)


def record(source, target, options, **_):
    """In place of ``triton.compile``."""
    kernel, constants = source.fn, {position[0]: value for position, value in source.constants.items()}
    mode, shown = [kernel.fn.__name__, options["num_warps"]], []
    for position, parameter in enumerate(kernel.params):
        value = constants.get(position, "given")
        key = parameter.name, value, source.signature[parameter.name], str(source.attrs.get((position,)))
        fixed = parameter.is_constexpr or value is None or parameter.name in ("H", "n_units")
        (mode if fixed else shown).append(key)
    seen[tuple(mode)].add(tuple(shown))
    return SimpleNamespace()


def critic(pairs, sentences, chunk_size, precision, keep):
    """One batch's forward and backward pass; pairs choose among the rows of twice as many tokens."""
    operands = draw(2 * pairs, UNITS), draw(sentences, UNITS), draw(UNITS), draw(1)
    local_index, pair_index = torch.randperm(2 * pairs)[:pairs], torch.randint(sentences, (pairs,))
    terms = Terms(pair_index) if keep and chunk_size is None else Terms()
    of = Pairs(pairs, local_index, pair_index, chunk_size, terms=terms)
    lse, scores = pairwise_mlp.pairwise_mlp_forward(*operands, of, precision=precision, keep_scores=keep)
    pairwise_mlp.pairwise_mlp_backward(lse, lse, *operands, of, precision=precision, scores=scores)


def batch(pairs, sentences):
    precision, keep = random.choice(["exact", "fast"]), random.random() < 0.5
    for chunk_size in (None, 8, 70):
        critic(pairs, sentences, chunk_size, precision, keep)
    every, owner = torch.randperm(2 * pairs)[:pairs], torch.randint(sentences, (pairs,))
    operands = draw(2 * pairs, UNITS), draw(sentences, UNITS), draw(UNITS), draw(1)
    chunk_bound.chunk_bound(*operands, every, owner, 32, (True,) * 4)
    labels = torch.randint(9, (pairs,)) if keep else None
    launches.dots(pairs, pairs, UNITS, torch.float32, labels is not None, symmetric=True)
    shape = sentences, random.randint(1, 90), 16
    launches.regularizers(shape, torch.ones(shape[:2], dtype=torch.int64), torch.float32)


def main():
    here = dict.fromkeys(("get_current_device", "get_current_stream"), lambda *_: 0)
    launches.driver.set_active(SimpleNamespace(get_current_target=lambda: launches.TARGET, **here))
    launches.lower, launches.JITFunction.__getitem__ = record, launches.launcher
    separable.BLOCK_SCORES, random_counts = 2**15, random.Random(0)
    random.seed(0)
    for _ in range(BATCHES):
        batch(random_counts.choice([1, 16, random_counts.randint(1, 700)]), random_counts.choice([1, 16, 32, 37]))
    several = {mode: variants for mode, variants in seen.items() if len(variants) > 1}
    for mode, variants in several.items():
        print(mode, *(set(keys) for keys in zip(*variants, strict=True) if len(set(keys)) > 1))
    print(f"{len(seen)} modes, {sum(map(len, seen.values()))} variants")
    assert not several


if __name__ == "__main__":
    main()
