# Every target creates and fills its own virtual environment when it is missing or out of date.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
WORKERS ?= auto

# One math thread per process: the tests already use every core.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-slow test-extras lint format bench clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(READY)   ## the main job on built-in real data, ending in a report
	$(BIN)/spikedim design --data digits --model spikformer_nano --verify --tolerance 2

test: $(READY)   ## the default test suite
	$(BIN)/pytest -n $(WORKERS) -m "not slow"

test-slow: $(READY)  ## the long statistical and parity checks
	$(BIN)/pytest -n $(WORKERS) -m slow

# Each peer version has an environment of its own on top of the main one, which .pth adds.
# SpikingJelly and Norse ask for torchvision, NeuroBench for tonic and torchaudio, which they do
# not need here: --no-deps.
EXTRAS := $(VENV)-adapters
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

test-extras: $(EXTRAS)-2.0.0/.ready $(EXTRAS)-0.0.0.0.14/.ready  ## parity with SpikingJelly, snnTorch, Norse, NeuroBench; GPU kernels interpreted
	set -e; for venv in $(^D); do \
		$$venv/bin/python -m pytest -q tests/test_adapters_extras.py tests/test_circuits_exchange.py \
			tests/test_profiling_extras.py tests/test_neurons_triton.py; done

$(EXTRAS)-%/.ready: $(READY)
	rm -rf $(@D) && $(BIN)/python -m venv $(@D)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > $$($(@D)/bin/python $(PURELIB))/main.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[adapters,neurobench,triton]'
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps spikingjelly==$* norse==1.1.0 \
		neurobench==2.3.0
	touch $@

lint: $(READY)   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## rewrite to the project style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## benchmarks; ratios against peers in the same run
	set -e; for script in benchmarks/bench_*.py; do $(BIN)/python $$script; done

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "spikedim needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-* && touch $@

clean:           ## remove caches and run directories
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
