"""The evaluation floor: accuracy with its uncertainty, and how much a model's features tell."""
