# The same few commands here and in CI. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60
# A process for each processor; the tests of a file stay together.
PYTEST := $(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
CORE := CMakeLists.txt pyproject.toml $(shell find core -type f)

.PHONY: run test test-all test-cuda test-tvm lint sanitize fuzz bench bench-gpu goldens clean
.DELETE_ON_ERROR:

run: .venv/built
	@$(BIN)/bitnet run --chat --temperature 0.6 "Tell me a story about a brave girl."

# TESTS: more for pytest, such as --ignore=tests/kernels.
test: .venv/test
	$(PYTEST) --ignore=tests/live --ignore=tests/cuda $(TESTS)

# Clients that cannot live together, each with what it needs, for tests/live/clients.
CLIENTS := $(patsubst tests/live/clients/environments/%.txt,.venv/clients-%,$(wildcard tests/live/clients/environments/*.txt))

test-all: .venv/live $(CLIENTS)
	$(PYTEST) --ignore=tests/cuda $(TESTS)

# The GPU's kernels, without a GPU: g++, Triton's interpreter, and both compilers for every architecture.
test-cuda: .venv/cuda
	$(PYTEST) tests/cuda

# What compiles models, with the compiler: the other tests need nothing of it.
test-tvm: .venv/tvm
	$(PYTEST) tests/backends/test_tvm.py tests/compile

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/Dockerfile

# The core's tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: .venv/test
	tools/sanitize.sh

# What reads model files, with bytes that lead where no others have; the corpus stays in build/.
fuzz: .venv/fuzz
	$(BIN)/python tests/fuzz/fuzz_model_files.py build/fuzz/corpus -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1

bench: .venv/built
	$(BIN)/bitnet bench --synthetic 2B-4T

# On a card: first whether it computes what the CPU does, then its speed, into build/gpu.json and build/gpu.md.
bench-gpu: .venv/gpu
	$(BIN)/python benchmarks/gpu.py --out build/gpu.json

# Records again what llama.cpp computes on the fixtures; compiles it, which takes a quarter of an hour.
goldens: .venv/built
	$(BIN)/python tests/golden/make_goldens.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bitnet needs Python 3.10 or newer."; exit 1; }
	@# Debian keeps the part of venv that installs pip in python3-venv.
	$(PYTHON) -m venv .venv 2>/dev/null || { $(PYTHON) -m venv --clear --without-pip .venv && $(BIN)/python tools/install_pip.py; } \
	  || { rm -rf .venv; echo "No pip: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install -q --upgrade pip

.venv/built: .venv/bin/python $(CORE)
	$(BIN)/pip install -q -e .
	@touch $@

.venv/test: .venv/built
	$(BIN)/pip install -q --group test
	@touch $@

.venv/tvm: .venv/test
	$(BIN)/pip install -q -e '.[tvm]'
	@touch $@

.venv/live: .venv/test
	$(BIN)/pip install -q --group live
	@touch $@

.venv/cuda: .venv/test pyproject.toml
	$(BIN)/pip install -q -e '.[cuda]'
	@touch $@

.venv/gpu: .venv/built pyproject.toml
	$(BIN)/pip install -q -e '.[cuda]'
	$(BIN)/pip install -q --group gpu-peers || echo "Without torch and transformers: their rows of the report stay empty."
	@touch $@

.venv/fuzz: .venv/test
	$(BIN)/pip install -q --group fuzz
	@touch $@

.venv/clients-%: tests/live/clients/environments/%.txt .venv/bin/python
	$(PYTHON) -m venv --clear $@ 2>/dev/null || { $(PYTHON) -m venv --clear --without-pip $@ && $@/bin/python tools/install_pip.py; }
	$@/bin/pip install -q -r $< || { rm -rf $@; exit 1; }
	@touch $@

.venv/lint: .venv/test
	$(BIN)/pip install -q --group lint
	@touch $@

clean:
	rm -rf .venv build
