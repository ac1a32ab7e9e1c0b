"""infobert-fast: InfoBERT's mutual-information regularisers, fused, differentiable and ready to train with."""
