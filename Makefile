# Two commands to know: `make demo` and `make test`. Both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Installed in .venv rather than for each build, so that a second build compiles nothing anew.
BUILD_TOOLS := scikit-build-core nanobind ninja $(if $(shell command -v cmake),,cmake)
INSTALL := $(PIP) --no-build-isolation
PYTEST_WORKERS ?= 2
JOBS ?= 2
export OMP_NUM_THREADS ?= 1
# Bytecode is kept: the tests start hundreds of processes, and torch alone takes seconds to compile.
unexport PYTHONDONTWRITEBYTECODE

TINY := la_trt/assets/tiny
SAMPLE := la_trt/assets/images/purple.png
QUESTION := What number is written on the large purple star?
BUNDLE := out/tiny

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types native bench-kernels sanitize cuda test-cuda test-mutants plugins tensorrt \
	test-gpu test-ray bench experiments clean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp for each set of dependencies: unchanged requirements cost nothing the second time.
$(VENV)/.run: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*.* csrc/*/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "la-trt needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(BUILD_TOOLS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e '.[test]'
	$(PIP) --no-deps tritonclient  # its messages alone; its dependencies bar a newer ml_dtypes
	@touch $@

$(VENV)/.check: $(VENV)/.run
	$(INSTALL) -e '.[test,check]'
	@touch $@

demo: $(VENV)/.run ## build the shipped model, ask about a picture, draw heat maps into out/
	$(BIN)/la-trt build --ckpt $(TINY) --output $(BUNDLE)
	$(BIN)/la-trt infer --engine $(BUNDLE) --image $(SAMPLE) --prompt "$(QUESTION)" \
		--policy copy --stats --heatmap out/demo-copy.png
	$(BIN)/la-trt infer --engine $(BUNDLE) --image $(SAMPLE) --prompt "$(QUESTION)" \
		--policy route --stats --heatmap out/demo-route.png
	@echo "heat maps: out/demo-copy.png out/demo-route.png"

test: $(VENV)/.test ## run every test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.check ## rules and format: ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

types: $(VENV)/.check ## mypy, strict
	$(BIN)/mypy

check: lint types test ## lint, format, types, tests

native: ## build the C++ kernels and run their own tests (needs cmake and a compiler)
	cmake -S . -B build/csrc -DLATRT_TESTS=ON
	cmake --build build/csrc --parallel $(JOBS)
	ctest --test-dir build/csrc --output-on-failure

sanitize: ## the same under ASan with UBSan, and under TSan
	for kinds in address,undefined thread; do \
		cmake -S . -B build/$$kinds -DLATRT_SANITIZE=$$kinds -DCMAKE_BUILD_TYPE=RelWithDebInfo && \
		cmake --build build/$$kinds --parallel $(JOBS) && \
		ctest --test-dir build/$$kinds --output-on-failure || exit 1; \
	done

bench-kernels: ## measure the C++ kernels beside what the processor can do (a minute; needs cmake and a compiler)
	cmake -S . -B build/csrc -DLATRT_TESTS=ON
	cmake --build build/csrc --parallel $(JOBS) --target latrt_bench latrt_bench_attention latrt_bench_mix
	for rows in 1 8 256; do build/csrc/latrt_bench $$rows $(JOBS) huge || exit 1; echo; done
	build/csrc/latrt_bench_attention
	@echo
	build/csrc/latrt_bench_mix

cuda: ## compile the CUDA kernels for every target (needs nvcc and cmake, no GPU)
	cmake -S csrc/kernels/cuda -B build/cuda -DLATRT_CUDA_LIBRARY=ON
	cmake --build build/cuda --parallel $(JOBS)

test-cuda: cuda $(VENV)/.test ## test the CUDA kernels on an emulated device, and the tests by mutants
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) tests/cuda
	$(BIN)/python -m tests.cuda.mutants --jobs $(JOBS)

test-mutants: $(VENV)/.test ## wrong edits of the CUDA kernels, which the emulated tests must notice
	$(BIN)/python -m tests.cuda.mutants --jobs $(JOBS)

# Ray gives its workers a nice value of 15, which starves them beside anything else.
test-ray: $(VENV)/.test ## replicas and batches on Ray: kills, resumes, rolling updates (minutes)
	$(INSTALL) -e '.[test,ray]'
	RAY_worker_niceness=0 $(BIN)/python -m pytest -m ray tests/deploy tests/offline

# The TensorRT headers: of the wheel kernel-lens, or make TENSORRT_INCLUDE=DIR.
TENSORRT_INCLUDE = $(shell $(BIN)/python -c 'import importlib.util as u; print(u.find_spec("kernel_lens").submodule_search_locations[0] + "/include/tensorrt")')
plugins: $(VENV)/.run ## compile the TensorRT plugins with their kernels into la_trt (needs nvcc and cmake)
	$(PIP) kernel-lens
	cmake -S csrc/plugins -B build/plugins -DLATRT_TENSORRT_INCLUDE=$(TENSORRT_INCLUDE)
	cmake --build build/plugins --target latrt_plugins latrt_rtx_alias --parallel $(JOBS)
	cp build/plugins/liblatrt_plugins.so la_trt/_tensorrt_plugins.so
	cp build/plugins/liblatrt_rtx_alias.so la_trt/_tensorrt_rtx_alias.so

tensorrt: $(VENV)/.test ## build TensorRT engines without a GPU and look into them (needs nvcc and cmake)
	$(INSTALL) -e '.[test,tensorrt]' kernel-lens
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m tensorrt tests/tensorrt

test-gpu: plugins $(VENV)/.test ## what only a GPU with TensorRT can show
	$(INSTALL) -e '.[test,tensorrt]'
	$(BIN)/python -m pytest -rP tests/gpu

bench: $(VENV)/.run ## measure the shipped model under every policy
	$(BIN)/la-trt build --ckpt $(TINY) --output $(BUNDLE)
	$(BIN)/la-trt bench --engine $(BUNDLE) --plot out/bench.png

experiments: $(VENV)/.test ## train and measure every variant (8 h of 2 cores, goes on where it was): docs/results
	$(BIN)/python -m train.experiments $(EXPERIMENTS_ARGS)

clean: ## remove everything that was made, .venv included
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
