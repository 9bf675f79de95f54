# Every target sets up what it needs: `make demo` or `make test` on a fresh machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LMMS_EVAL := .venv-lmms-eval
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test test-vllm test-ray test-lmms-eval check lint types clean

setup: $(VENV)/.installed

# torch is pinned in the command too, so that pip never considers a build with CUDA packages.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/videopanda demo --output out/demo

test: setup
	$(BIN)/python -m pytest

# vLLM asks for other versions of packages than we do, so it gets an environment without this one.
$(VLLM)/.installed: tests/vllm/requirements.txt tests/vllm/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/vllm/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement tests/vllm/vllm.txt
	touch $@

test-vllm: setup $(VLLM)/.installed
	$(BIN)/python -m pytest tests/vllm/check_vllm.py

# lmms-eval asks for torchvision, which breaks CPU builds of torch. So it lies in an environment of its own, without
# the dependencies that it declares, from which the packages of ours are seen, too.
$(LMMS_EVAL)/.installed: $(VENV)/.installed tests/evaluation/lmms_eval.txt
	$(PYTHON) -m venv $(LMMS_EVAL)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(LMMS_EVAL)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/videopanda.pth"
	$(LMMS_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/evaluation/lmms_eval.txt
	$(LMMS_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms-eval==0.7.3"
	touch $@

test-lmms-eval: setup $(LMMS_EVAL)/.installed
	$(LMMS_EVAL)/bin/python -c "import lmms_eval"
	$(LMMS_EVAL)/bin/python -m pytest tests/evaluation/test_lmms_eval.py

test-ray: setup
	$(BIN)/python -m pytest tests/serving/check_ray.py

lint: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: setup
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) $(VLLM) $(LMMS_EVAL) out dist .pytest_cache .mypy_cache .ruff_cache
