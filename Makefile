# Every target sets up what it needs in .venv; the second call is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
# With a GPU the default build; without one the CPU build, where a configured index has it (give your
# own with TORCH="torch==2.13.0 --index-url ..."; the plain package brings gigabytes of CUDA along).
TORCH ?= $(if $(GPU),'torch>=2.11',torch==2.13.0+cpu)

.PHONY: demo test test-slow test-interpret test-compile test-machine test-gpu test-matrix gpu-suite soak soak-short fuzz docs lint format clean

demo: $(VENV)/.demo
	$(BIN)/python demo/run.py

# As many tests at a time as there are cores, each with one thread: most start small processes.
JOBS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# The interpreter replaces Triton's compiler when kernels are imported, so it has its own process.
# Without a GPU the kernels' tests run there alone.
HERE := $(if $(GPU),, and not interpret and not gpu)
test: $(VENV)/.op
	$(PYTEST) -m "not slow$(HERE)"
	TRITON_INTERPRET=1 $(PYTEST) -m interpret

# Launchers, many processes, every kernel's compilation. The machine tier's have test-machine.
test-slow: $(VENV)/.op
	$(PYTEST) -m "slow and not machine$(HERE)"

test-interpret: $(VENV)/.dev
	TRITON_INTERPRET=1 $(PYTEST) -m interpret

test-compile: $(VENV)/.dev
	$(BIN)/python -m pytest -m compile

test-machine: $(VENV)/.dev
	$(BIN)/python -m pytest -m machine

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

# Every supported Python found here, with the oldest and the newest dependencies; gigabytes each.
test-matrix: $(VENV)/.dev
	$(BIN)/python tests/support/matrix.py $(MATRIX)

gpu-suite:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_suite.py

# 25 kills, five under each engine; test-slow has them.
soak-short: $(VENV)/.op
	$(BIN)/python -m pytest tests/engine/test_soak.py

# 200 kills under every engine, in one, two and four processes; hours on two cores.
soak: $(VENV)/.op
	$(BIN)/python tests/support/soak.py --kills 32 --seed 2
	$(BIN)/python tests/support/soak.py --kills 10 --seed 3 --ranks 4 --engines ddp zero1 zero2 zero3

# Damaged videos: N=10000 takes about twenty minutes on two cores; the tests have a short form.
fuzz: $(VENV)/.dev
	$(BIN)/python tests/support/fuzz.py --count $(or $(N),1000)

# The pages of docs/ as a site, with every command and setting: build/site/index.html.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What was trained stays: runs/ is the reader's.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) || $(PIP) torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

# DeepSpeed builds against the installed torch, so without build isolation, and its ops at first use.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) setuptools wheel
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -e '.[dev]'
	touch $@

# What DeepSpeed compiles at its first start takes two minutes: here, not within a test's time limit.
$(VENV)/.op: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/support/deepspeed_op.py
	touch $@
