"""How a step runs through whatever wraps the model: one file an engine."""
