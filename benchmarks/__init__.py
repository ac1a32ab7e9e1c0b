"""The benchmarks: suites, how they are run and measured, what the results look like, and a model of what grows."""
