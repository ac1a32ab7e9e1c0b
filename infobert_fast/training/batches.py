"""Which examples a rank sees together: batches by tokens, and groups of similar length."""

from __future__ import annotations

from typing import Any, cast

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from infobert_fast.data.batching import TokenBatches, token_lengths
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.reliability.order import EpochOrder

__all__ = ["by_tokens", "check_batches", "grouped_by_length", "sizes_differ"]


def check_batches(args: InfoBertArguments, dataset: Any, accelerator: Accelerator) -> None:
    """Refuse batches that cannot be made as the arguments ask.

    Raises:
        ValueError: for a stream that rank 0 would send to the others or whose lengths are not known, and for a budget
            of tokens that is too small.
    """
    iterable = isinstance(dataset, IterableDataset)
    if iterable and args.world_size > 1 and accelerator.dispatch_batches is not False:
        raise ValueError(
            "`train_dataset` is iterable, and accelerate would send its batches from rank 0, as tensors alone: "
            "pass accelerator_config={'dispatch_batches': False} and shard the dataset by rank"
        )
    if iterable and args.batch_tokens is not None:
        raise ValueError("`batch_tokens` was set for an iterable `train_dataset`, whose lengths are not known: unset")
    if args.batch_tokens is not None and dataset is not None:
        _token_batches(args, dataset)


def sizes_differ(args: InfoBertArguments, dataset: Any, accelerator: Accelerator) -> bool:
    """Whether ranks may hold different numbers of sentences at one step."""
    uneven = isinstance(dataset, IterableDataset) or args.batch_tokens is not None
    return uneven or args.train_sampling_strategy == "batch_rebalance" or not accelerator.even_batches


def by_tokens(
    loader: DataLoader[Any], args: InfoBertArguments, dataset: Any, accelerator: Accelerator
) -> DataLoader[Any]:
    """The loader over batches of ``batch_tokens``, which are this rank's from the start."""
    same = ("collate_fn", "num_workers", "pin_memory", "worker_init_fn", "prefetch_factor", "persistent_workers")
    batches = _token_batches(args, dataset)
    loader = DataLoader(loader.dataset, batch_sampler=batches, **{name: getattr(loader, name) for name in same})
    return cast(
        DataLoader[Any],
        prepare_data_loader(
            loader,
            device=args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=accelerator.non_blocking,
        ),
    )


def grouped_by_length(args: InfoBertArguments, dataset: Any) -> EpochOrder:
    """An order of groups of similar lengths. The stock one reads a column from disk for every comparison, and draws
    another order in a resumed epoch.
    """
    lengths = token_lengths(dataset, args.length_column_name)
    group = args.train_batch_size * args.gradient_accumulation_steps
    return EpochOrder(LengthGroupedSampler(group, lengths=lengths), _seed(args))


def _token_batches(args: InfoBertArguments, dataset: Any) -> TokenBatches:
    return TokenBatches(
        token_lengths(dataset, args.length_column_name),
        cast(int, args.batch_tokens),
        ranks=args.world_size,
        rank=args.process_index,
        seed=_seed(args),
    )


def _seed(args: InfoBertArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed
