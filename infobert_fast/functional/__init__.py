"""Stateless functions: the bounds, the anchors and the perturbation; each picks its implementation and differentiates.

Every function computes what its namesake in :mod:`infobert_fast.reference` states literally. Where a function takes
``implementation``, it is

* ``"auto"``: Triton kernels where tensors are on a GPU and Triton is there, PyTorch otherwise;
* ``"triton"``: the kernels, or an error that says why not;
* ``"torch"``: factorised PyTorch with bounded memory, on any device;
* ``"compiled"``, for the bounds with the concatenating critic: the same with its inner loops through ``torch.compile``.
  On a CPU it needs a C++ compiler, and the first call of a process takes seconds or, where torch's cache on disk is
  empty, up to half a minute;
* ``"reference"``: the literal specification.

Bounds are in nats. Half-precision inputs are accumulated in float32 and the bound is returned in float32.
"""

from infobert_fast.functional import bounds
from infobert_fast.functional.anchors import anchor_counts, anchor_indices, select_anchors
from infobert_fast.functional.club import club, club_sampled, sample_rows
from infobert_fast.functional.contrastive import donsker_varadhan, info_nce, nwj, smile
from infobert_fast.functional.critics.dot import (
    SEPARABLE_CRITICS,
    SIDES,
    SeparableCritic,
    Side,
    dot_logsumexp,
    dot_scores,
)
from infobert_fast.functional.critics.mlp import PRECISIONS, Precision, mlp_scores, pairwise_mlp_logsumexp
from infobert_fast.functional.freelb import NORM_TYPES, NormType, freelb_init, freelb_step
from infobert_fast.functional.gaussian import (
    gaussian_club,
    gaussian_club_sampled,
    gaussian_log_likelihood,
    leave_one_out,
    variational_upper_bound,
)
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation
from infobert_fast.functional.ranks import club_over_ranks, exchange, gather_rows, mean_over_ranks
from infobert_fast.functional.rows import take_rows
from infobert_fast.functional.separable import separable_info_nce

__all__ = [
    "IMPLEMENTATIONS",
    "NORM_TYPES",
    "PRECISIONS",
    "SEPARABLE_CRITICS",
    "SIDES",
    "Implementation",
    "NormType",
    "Precision",
    "SeparableCritic",
    "Side",
    "anchor_counts",
    "anchor_indices",
    "bounds",
    "club",
    "club_over_ranks",
    "club_sampled",
    "donsker_varadhan",
    "dot_logsumexp",
    "dot_scores",
    "exchange",
    "freelb_init",
    "freelb_step",
    "gather_rows",
    "gaussian_club",
    "gaussian_club_sampled",
    "gaussian_log_likelihood",
    "info_nce",
    "leave_one_out",
    "mean_over_ranks",
    "mlp_scores",
    "nwj",
    "pairwise_mlp_logsumexp",
    "sample_rows",
    "select_anchors",
    "separable_info_nce",
    "smile",
    "take_rows",
    "variational_upper_bound",
]
