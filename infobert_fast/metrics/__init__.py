"""Scores from predictions and labels, as the benchmarks define them, by NumPy and SciPy."""
