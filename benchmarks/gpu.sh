#!/usr/bin/env bash
# Everything that needs a GPU, in one call on a machine that has torch and triton: the tests marked gpu, then the
# timings. Results go to the folder named first (default benchmarks/results/gpu). Nothing is timed while a test is red.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
python -m pip install --quiet --no-deps --no-build-isolation -e .
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/device.txt"
python -m pytest -m gpu -q -p no:cacheprovider 2>&1 | tee "$out/tests.txt"
python benchmarks/info_nce.py --sizes 256 512 1024 2048 4096 --output "$out/info_nce.json"
python benchmarks/step.py --repeats 20 --output "$out/step.json"
python -m infobert_fast.cli bench regularizers --output "$out/regularizers.json"
