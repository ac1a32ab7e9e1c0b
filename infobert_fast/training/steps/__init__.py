"""What one optimisation step computes on a micro-batch."""
