# Every target makes what it needs: `make test` works on a machine with python3 (3.11 or newer), make and pip's index.
# The environment is .venv; it is made once, and again when setup.py or constraints.txt change. All paths are relative,
# so the directory's own name may hold spaces.

PYTHON ?= python3
WORKERS ?= logical
PYTEST_ARGS ?=
SANITIZE_PYTHON ?=

ENV := .venv/.complete
RUN := .venv/bin/python
SANITIZER := .venv-sanitize/.complete
SANITIZED := .venv-sanitize/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env test test-slow test-gpu sanitize static demo bench lint style typecheck format wheel clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

env: $(ENV) ## make the environment (.venv) with everything that tests, demo and benchmarks need

$(ENV): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is missing or older than Python 3.11; name another: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "error: '$(PYTHON)' cannot make a virtual environment: it lacks venv or ensurepip (on Debian and Ubuntu:" \
			"apt install python3-venv); or name another: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo "installing into .venv: about 3 GB (more with CUDA), a few minutes ..."
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# One thread per worker, or the workers' threads fight for the cores. The tests need no network: hubs are switched off,
# so that a test which asks for a download fails at once. Files stay whole on a worker: their fixtures are made once.
# Tests on a GPU run after the others and one at a time: they measure memory and count synchronisations.
test: $(ENV) ## run the tests; those marked `gpu` where there is one
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile -m "not gpu and not slow" $(PYTEST_ARGS)
	@if $(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		HF_HUB_OFFLINE=1 $(RUN) -m pytest -m gpu $(PYTEST_ARGS) || test $$? -eq 5; fi

test-slow: $(ENV) ## run the tests marked `slow`: every engine, version and accumulation on two and four ranks
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -m slow $(PYTEST_ARGS)

test-gpu: $(ENV) ## run the tests marked `gpu` (needs a CUDA device)
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m gpu $(PYTEST_ARGS)

# The tests of the kernels, on a device that is emulated, and faults that must be found. Its tools need another Python,
# torch and triton than the tests above, so it has an environment of its own.
sanitize: $(SANITIZER) ## execute every kernel on a CPU: accesses, races, barriers (needs Python 3.12 or 3.13)
	OMP_NUM_THREADS=1 INFOBERT_FAST_TEST_SIZES=small PYTHONPATH=tests/sanitize $(SANITIZED) -m pytest -p plugin $(if $(PYTEST_ARGS),,--every-kernel) \
		-n $(WORKERS) --maxprocesses 8 --dist worksteal tests/kernels tests/sanitize \
		--ignore-glob 'tests/kernels/test_gates_*' --ignore tests/kernels/test_launches.py \
		--ignore tests/kernels/test_declaration.py $(PYTEST_ARGS)

static: $(SANITIZER) ## print what the binaries say of every kernel: registers, occupancy, spills, bank conflicts, cycles
	$(SANITIZED) tests/sanitize/static_page.py

$(SANITIZER): setup.py tests/sanitize/requirements.txt
	@python=$$(SANITIZE_PYTHON='$(SANITIZE_PYTHON)' bash tests/sanitize/find_python.sh) && \
		echo "installing into .venv-sanitize with $$python: about 5 GB, a few minutes ..." && \
		"$$python" -m venv --clear .venv-sanitize
	$(SANITIZED) -m pip install --quiet --disable-pip-version-check --requirement tests/sanitize/requirements.txt
	$(SANITIZED) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(ENV) ## train on generated sentences, with and without the regularisers; writes demo/
	$(RUN) examples/demo.py

bench: $(ENV) ## time every suite on a CPU, then write docs/benchmarks.md and README's table
	$(RUN) -m infobert_fast.cli bench --output benchmarks/results/cpu/bench.json
	$(RUN) benchmarks/report/pages.py docs/benchmarks.md README.md

lint: style typecheck ## both of the following

style: $(ENV) ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

typecheck: wheel ## check the types of an installed copy of the package
	rm -rf build/typecheck
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-index --target build/typecheck dist/*.whl
	cd build/typecheck && ../../$(RUN) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p infobert_fast

format: $(ENV) ## let ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The sdist first and the wheel from it: a wheel built in the tree would take along files that build/ remembers.
wheel: $(ENV) ## build dist/*.tar.gz and dist/*.whl
	rm -rf dist
	$(RUN) -m build --no-isolation --outdir dist . >/dev/null

clean: ## remove what builds and checks leave behind
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf .venv .venv-sanitize
