"""Triton kernels of infobert-fast; imported as ``infobert_fast.kernels``. One idea per file, kernels then launchers."""
