"""Scores from predictions and labels, as the benchmarks define them; NumPy alone."""
