"""Modules named as the public files that they replace: a script changes its import line and nothing else."""
