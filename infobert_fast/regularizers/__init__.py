"""InfoBERT's two regularisers, from hidden states to a bound: the information bottleneck and the anchored features."""

from infobert_fast.regularizers.anchored import NEGATIVES, AnchoredFeature, Negatives
from infobert_fast.regularizers.bottleneck import InformationBottleneck, Partners, Sampling
from infobert_fast.regularizers.versions import AFR_VERSIONS, VERSIONS, Kind

__all__ = [
    "AFR_VERSIONS",
    "NEGATIVES",
    "VERSIONS",
    "AnchoredFeature",
    "InformationBottleneck",
    "Kind",
    "Negatives",
    "Partners",
    "Sampling",
]
