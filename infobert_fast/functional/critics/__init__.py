"""Critics: checked once, projected, and summed up to the scores that :mod:`infobert_fast.functional.bounds` takes."""
