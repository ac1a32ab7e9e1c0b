"""Whole checkpoints, exact resumption, no step from what is not finite."""
