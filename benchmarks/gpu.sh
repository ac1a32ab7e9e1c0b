#!/usr/bin/env bash
# Everything that needs a GPU, in one call and within nine minutes: the tests marked gpu, the sanitizer, every suite.
#
#   benchmarks/gpu.sh [all|tests|sanitize|bench] [FOLDER]
#
# Results go to FOLDER, by default benchmarks/results/ and the device's name; a part that is finished there is skipped,
# so that a call which was cut off goes on where it was. Nothing is timed while a test is red. What stays are four files:
# device.txt, tests.txt, sanitizer.txt and bench.json. Settings:
#   BUDGET=530    seconds for all parts; a suite that no longer fits is left for the next call
#   SECONDS_EACH=0.5    timed seconds a benchmark
#
# The machine needs torch, triton and transformers. What else is missing comes from wheels in benchmarks/wheels/ (not in
# the repository), which a machine with an index fills for the GPU machine's Python and platform:
#   pip download --no-deps --only-binary :all: --python-version 3.12 -d benchmarks/wheels \
#       -c constraints.txt pytest iniconfig pluggy pytest-benchmark py-cpuinfo2 rich markdown-it-py mdurl pygments tqdm \
#       hypothesis sortedcontainers datasets dill multiprocess xxhash pandas python-dateutil tzdata pyarrow accelerate \
#       psutil peft scipy memeff siglip-kernel
# The last two are other projects' kernels, timed beside ours where they are there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part=${1:-all}
case $part in
all | tests | sanitize | bench) ;;
*)
    echo "the part was '$part'; it must be all, tests, sanitize or bench" >&2
    exit 2
    ;;
esac
python=${PYTHON:-python}
budget=${BUDGET:-530}
each=${SECONDS_EACH:-0.5}
export HF_HUB_OFFLINE=1

if ! name=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
    echo "no CUDA device that $python's torch can use; set PYTHON to one that can" >&2
    exit 1
fi
slug=$(printf '%s' "$name" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | sed 's/^nvidia-//; s/-*$//')
out=${2:-benchmarks/results/$slug}
mkdir -p "$out"

prepare() {
    local missing wheel
    if compgen -G 'benchmarks/wheels/*.whl' >/dev/null; then
        # One by one and without dependencies: what the machine has (torch above all) stays as it is.
        for wheel in benchmarks/wheels/*.whl; do
            missing=$(basename "$wheel" | sed 's/-[0-9].*//')
            "$python" -m pip show --quiet "$missing" 2>/dev/null ||
                "$python" -m pip install --quiet --no-deps --no-index "$wheel"
        done
    fi
    "$python" -m pip install --quiet --no-deps --no-build-isolation -e .
}

# Folder by folder, each kept once it is green: what the machine's time cuts off is all that the next call repeats.
tests() {
    local group where red
    for group in kernels training others; do
        [[ -f $out/tests-$group.txt ]] && continue
        case $group in
        others) where=(tests --ignore tests/kernels --ignore tests/training) ;;
        *) where=("tests/$group") ;;
        esac
        red=0
        timeout "$((budget > SECONDS + 60 ? budget - SECONDS : 60))" \
            "$python" -m pytest -m gpu "${where[@]}" -q -p no:cacheprovider >"$out/tests.partial" 2>&1 || red=$?
        tail -n 25 "$out/tests.partial"
        if ((red == 124)); then
            echo "the tests of $group did not end in time: call it again" >&2
            exit 1
        elif ((red)); then
            echo "the tests of $group are red (in $out/tests.partial): nothing is timed" >&2
            exit 1
        fi
        mv "$out/tests.partial" "$out/tests-$group.txt"
    done
    cat "$out"/tests-*.txt >"$out/tests.txt"
    rm "$out"/tests-*.txt
}

# Small cases of every kernel: a sanitizer slows them down a hundredfold. Allocations are PyTorch's own, or a read
# beyond a tensor would end in another one of the same block, and not be seen.
sanitize() {
    local tool sanitizer
    if ! sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
        echo "compute-sanitizer is not installed: not run" | tee "$out/sanitizer.txt"
        return
    fi
    : >"$out/sanitizer.partial"
    for tool in memcheck racecheck; do
        echo "== $tool" >>"$out/sanitizer.partial"
        if ! PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 100 "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$python" -m infobert_fast.benchmarks.harness.small_cases >>"$out/sanitizer.partial" 2>&1; then
            tail -n 40 "$out/sanitizer.partial"
            echo "$tool found errors, or took too long (in $out/sanitizer.partial): nothing is timed" >&2
            exit 1
        fi
    done
    mv "$out/sanitizer.partial" "$out/sanitizer.txt"
    grep -E '==|SUMMARY' "$out/sanitizer.txt" | grep -E '^== |SUMMARY' || true
}

bench() {
    local suite
    for suite in info_nce path step regularizers separable dropin evaluation data; do
        if grep -qs "\"group\": \"$suite\"" "$out/bench.json"; then
            echo "$suite: done before"
        elif ((SECONDS > budget - 60)); then
            echo "$suite: left for the next call"
            left=1
        else
            timeout "$((budget - SECONDS))" "$python" -m infobert_fast.cli bench "$suite" --seconds "$each" \
                --output "$out/$suite.json" && keep "$out/$suite.json" || { echo "$suite: not whole" >&2 && left=1; }
        fi
    done
}

# One file holds the suites that are done.
keep() {
    "$python" - "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

sys.path.insert(0, "benchmarks/report")
from reading import read

suite = Path(sys.argv[1])
together = suite.with_name("bench.partial")
together.write_text(json.dumps(read(suite.parent), indent=1) + "\n")
suite.unlink()
together.rename(suite.with_name("bench.json"))
PYTHON
}

# The last lines of the output: the estimator and the step, medians in ms.
summary() {
    "$python" - "$out" <<'PYTHON'
import sys
from pathlib import Path

from infobert_fast.benchmarks.report.reading import read

content = read(Path(sys.argv[1]))
for row in content["rows"] if content else []:
    if row["name"].startswith(("test_all_pairs", "test_step[", "test_path", "test_clip", "test_peer")):
        roofline = f"{100 * row['roofline']:5.1f} % of roofline" if "roofline" in row else ""
        print(f"{row['group']:10} {row['name'][5:]:48} {1e3 * row['median']:12.3f} ms {row['extra_mib']:10.1f} MiB {roofline}")
PYTHON
}

left=0
prepare
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/device.txt" 2>/dev/null || echo "$name" >"$out/device.txt"
for one in tests sanitize; do
    result=$out/$([[ $one == tests ]] && echo tests || echo sanitizer).txt
    if [[ $part == "$one" || $part == all ]]; then
        if [[ -f $result ]]; then
            echo "$one: done before"
        else
            "$one"
        fi
    fi
done
if [[ $part == bench || $part == all ]]; then
    if [[ ! -f $out/tests.txt ]]; then
        echo "the tests have not passed here yet: benchmarks/gpu.sh tests" >&2
        exit 1
    fi
    bench
fi
summary
((left == 0)) || echo "not everything is done: call it again"
