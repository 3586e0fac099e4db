# make demo: everything, on a drawn look-alike of ImageNet.   make test: lint, types, tests.
PYTHON ?= python3
DALI ?= cuda12
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(DALI)

.PHONY: install demo test soak peers peers-shards bench-exchange bench-loader bench-decode bench-memory bench-shards bench-step bench-growth bench-curve bench-gpu experiments clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "error: Python 3.10 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall --quiet --yes nvidia-dali-cuda120 nvidia-dali-cuda130
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(DALI),parquet,dask,onnx,serve,retrieve,dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The long forms of the tests that kill and damage things at random.
soak: $(INSTALLED)
	SOAK=1 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_make_shards_sure.py tests/test_streams.py tests/test_faults.py tests/test_hosts.py

# PICTURES: a tar or folder of real JPEGs; ImageNet's own, or any others.
BENCH ?= bench
$(BENCH)/shards/pca.json: | $(INSTALLED)
	$(BIN)/python tools/bench_data.py --pictures $(or $(PICTURES),$(error give PICTURES=, a tar or folder of real JPEGs)) --out $(BENCH)

# The other loaders, in an environment of their own; see constraints-peers.txt for what Debian has to bring first.
peers:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints-peers.txt torch torchvision webdataset pillow ffcv spdl litdata mosaicml-streaming

bench-loader: $(INSTALLED) $(BENCH)/shards/pca.json
	$(BIN)/python tools/bench_loader.py --shards $(BENCH)/shards --work $(BENCH)/peers

# What make_shards is measured beside; see constraints-peers-shards.txt.
peers-shards:
	$(PYTHON) -m venv .venv-peers-shards
	.venv-peers-shards/bin/python -m pip install --quiet -c constraints-peers-shards.txt img2dataset pyvips pyvips-binary pillow torch torchvision

bench-shards: $(INSTALLED)
	$(BIN)/python tools/bench_shards.py --pictures $(or $(PICTURES),$(error give PICTURES=, a tar or folder of real JPEGs))

bench-step: $(INSTALLED)
	$(BIN)/python tools/bench_step.py

bench-growth: $(INSTALLED)
	$(BIN)/python tools/bench_growth.py

# TINY: tiny-20.tar, or another tar of train/CLASS and val/CLASS.
bench-curve: $(INSTALLED)
	$(BIN)/python tools/bench_curve.py --tiny $(or $(TINY),$(error give TINY=, a tar of small pictures in train/CLASS and val/CLASS))

# All else that the paper measures, on TINY's pictures: three hours of a core, half of it with SEEDS=0.
experiments: $(INSTALLED)
	$(BIN)/python tools/experiments.py --tiny $(or $(TINY),$(error give TINY=, a tar of small pictures in train/CLASS and val/CLASS)) $(if $(SEEDS),--seeds $(SEEDS))

# On a GPU machine, whose own Python does where there is no .venv. PICTURES: a few hundred real JPEGs, for the shards.
bench-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tools.bench_all --bench $(BENCH) $(if $(PICTURES),--pictures $(PICTURES))

bench-exchange: $(INSTALLED)
	$(BIN)/python -m model.bench_exchange

bench-decode: $(INSTALLED) $(BENCH)/shards/pca.json
	$(BIN)/python tools/bench_decode.py --pictures $(BENCH)/pictures

bench-memory: $(INSTALLED) $(BENCH)/shards/pca.json
	$(BIN)/python tools/bench_memory.py --shards $(BENCH)/shards

clean:
	rm -rf $(VENV) demo
