"""What is timed: a file `bench_NAME.py` a suite, and a profile of the step."""
