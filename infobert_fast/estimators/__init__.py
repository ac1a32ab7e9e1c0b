"""Mutual-information estimators as modules, with the names, parameters and methods people know from public code."""

from infobert_fast.estimators.club import CLUB, CLUBv2
from infobert_fast.estimators.contrastive import MINE, NWJ, SMILE, InfoNCE
from infobert_fast.estimators.gaussian import L1OutUB, VarUB
from infobert_fast.estimators.separable import SeparableInfoNCE

__all__ = ["CLUB", "MINE", "NWJ", "SMILE", "CLUBv2", "InfoNCE", "L1OutUB", "SeparableInfoNCE", "VarUB"]
