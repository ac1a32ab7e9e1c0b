"""A script for test_regularizer_ranks.py: the regularisers over 1, 2 or 4 CPU ranks, every case in one launch.

    python regularizer_ranks.py OUT WORLD

Every rank holds the joint batch's tensors and works on its own sentences; gradients are averaged over ranks as
DistributedDataParallel does, once by hand and once by DistributedDataParallel itself. Rank 0 writes ``OUT/WORLD.pt``:
for each case the value on every rank, and the averaged gradients.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import SequenceClassifierOutput

from infobert_fast import InfoNCE, functional
from infobert_fast.adversary import FreeLB
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step

HIDDEN, LONGEST, CL, CH = 6, 9, 0.3, 0.9
# Tokens per sentence, and how many sentences each rank has: by world size. One-token sentences have no anchor.
CASES = {
    "even": ([9, 4, 6, 7, 5, 9, 3, 8], {1: [8], 2: [4, 4], 4: [2, 2, 2, 2]}),
    "uneven": ([9, 4, 6, 7, 5, 9, 3, 8], {1: [8], 2: [1, 7], 4: [3, 1, 3, 1]}),
    "no anchor on a rank": ([1, 1, 6, 7, 9, 3, 8, 5], {1: [8], 2: [2, 6], 4: [2, 2, 2, 2]}),
    "anchors on one rank": ([1, 1, 1, 1, 1, 1, 5, 4], {1: [8], 2: [6, 2], 4: [2, 2, 2, 2]}),
    "one anchor": ([1, 1, 1, 1, 1, 1, 1, 2], {1: [8], 2: [6, 2], 4: [2, 2, 2, 2]}),
    "no anchor": ([1] * 8, {1: [8], 2: [4, 4], 4: [1, 3, 3, 1]}),
}


class Encoder(torch.nn.Module):
    """Features that depend on weights which all ranks share, with the critic inside, as the trainer has it."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(HIDDEN, HIDDEN)
        self.encode = torch.nn.Linear(HIDDEN, HIDDEN)
        self.critic = InfoNCE(HIDDEN, HIDDEN, 5)
        for parameter in self.critic.parameters():
            torch.nn.init.normal_(parameter, std=0.6)

    def forward(self, rows, grad, mask, lengths, pairs_of_ranks, anchored, bottlenecks):
        embedded = self.embed(rows).tanh()
        last = self.encode(embedded).tanh()
        afr = anchored(self.critic, embedded, last[:, 0], grad, mask, lengths, pairs_of_ranks)
        return afr, *(bottleneck(embedded, last, mask, lengths) for bottleneck in bottlenecks)


class Whole(torch.nn.Module):
    """The encoder as a step calls a model: from ids, with a loss and hidden states in its outputs."""

    def __init__(self, table, encoder):
        super().__init__()
        self.words = torch.nn.Embedding.from_pretrained(table)
        self.encoder = encoder

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, output_hidden_states):
        embedded = self.encoder.embed(self.words(input_ids)).tanh()
        last = self.encoder.encode(embedded + embedded.mean(1, keepdim=True)).tanh()
        return SequenceClassifierOutput(last[:, 0].square().sum(-1).mean(), hidden_states=(embedded, last))


def average(tensors):
    for tensor in tensors:
        if dist.is_initialized():
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
    return [tensor.clone() for tensor in tensors]


def on_every_rank(value):
    if not dist.is_initialized():
        return [value.item()]
    values = [torch.empty((), dtype=value.dtype) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value.detach())
    return [value.item() for value in values]


def run(lengths, split, rank, negatives, partners):
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), LONGEST, HIDDEN)
    h0, last, grad = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    mask = (torch.arange(LONGEST) < torch.tensor(lengths).unsqueeze(1)).long()
    torch.manual_seed(1)
    model = Encoder().double()
    anchored = AnchoredFeature(CL, CH, negatives)
    bottlenecks = [InformationBottleneck(kind, partners=partners) for kind in ("tokens", "sentence")]
    begin, end = sum(split[:rank]), sum(split[: rank + 1])
    own = slice(begin, end)
    counts = None
    if anchored.over_ranks:
        counts = [int(n) for (n,) in functional.exchange(anchored.count(lengths[own]))]

    # By hand, on leaves: gradients of hidden states and of every critic weight.
    leaves = [h0.requires_grad_(), last.requires_grad_()]
    arguments = (grad[own], mask[own], lengths[own], counts)
    afr = anchored(model.critic, h0[own], last[own, 0], *arguments)
    ib = [bottleneck(h0[own], last[own], mask[own], lengths[own]) for bottleneck in bottlenecks]
    result = {"values": {}, "gradients": {}}
    for name, bound in (("afr", afr), ("tokens", ib[0]), ("sentence", ib[1])):
        result["values"][name] = on_every_rank(bound)
        inputs = [*leaves, *(model.critic.parameters() if name == "afr" else ())]
        found = torch.autograd.grad(bound, inputs, allow_unused=name != "afr")
        result["gradients"][name] = average(
            [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
        )

    # Through DistributedDataParallel, all terms in one backward.
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    bounds = wrapped(h0.detach()[own], *arguments, anchored, bottlenecks)
    (bounds[1] + 0.3 * bounds[2] - bounds[0]).backward()
    result["ddp"] = [parameter.grad.clone() for parameter in model.parameters()]
    return result


def step(lengths, split, rank, negatives, partners):
    """Two passes of the trainer's step, whose ranks weigh their losses by their sentences: the averaged gradients."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, HIDDEN, dtype=torch.float64, generator=generator)
    ids = torch.randint(40, (len(lengths), LONGEST), generator=generator)
    mask = (torch.arange(LONGEST) < torch.tensor(lengths).unsqueeze(1)).long()
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    torch.manual_seed(1)
    model = Encoder().double()

    bottleneck = InformationBottleneck("tokens", partners=partners)
    objective = Objective(FreeLB(0.3, adv_steps=2), bottleneck, AnchoredFeature(CL, CH, negatives), model.critic)
    objective.beta, objective.alpha = 0.4, 0.7
    inputs = {"input_ids": ids[own], "attention_mask": mask[own]}
    batch = Batch(inputs, lengths[own], weight=split[rank] * len(split) / len(lengths))
    terms = infobert_step(objective, batch, Runner(PerturbedModel(Whole(table, model))), seed=0).mean
    return {"loss": on_every_rank(terms["loss"]), "gradients": average([p.grad for p in model.parameters()])}


def work(rank, world, out):
    torch.set_num_threads(1)
    if world > 1:
        store = dist.FileStore(str(out / f"store-{world}"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    settings = ("all", "all") if world > 1 else ("batch", "batch")
    results = {name: run(lengths, splits[world], rank, *settings) for name, (lengths, splits) in CASES.items()}
    for name, (lengths, splits) in CASES.items():
        results[name]["step"] = step(lengths, splits[world], rank, *settings)
    if world == 1:  # the same, where nobody else is there
        again = {name: run(lengths, splits[1], 0, "all", "all") for name, (lengths, splits) in CASES.items()}
        torch.save(again, out / "alone.pt")
    if rank == 0:
        torch.save(results, out / f"{world}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    out, world = Path(sys.argv[1]), int(sys.argv[2])
    if world == 1:
        work(0, 1, out)
    else:
        multiprocessing.start_processes(work, (world, out), nprocs=world, start_method="fork")
