# Two commands set everything up: `make demo` (the main job on built-in data) and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Without byte code every process compiles for half a minute what it imports; some environments switch it off.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint clean

demo: $(VENV)/jax
	$(BIN)/python -m recipes.cnn_cifar --backend jax --dataset shapes --epochs 8 --batch-size 64
	@echo
	@echo "figures and model: mlruns/artifacts/cnn_cifar (the run named above), or in the UI:"
	@echo "    $(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db"

# One process a backend, side by side, each with one thread; pytest sums them up. --dist each gives every
# process every test; `make test TESTS=tests/layers` gives them less. Those marked `once` have two processes of
# their own, on PyTorch: one for the sweeps', one for the others.
test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NPROC=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
	$(BIN)/python -m pytest $(TESTS) --dist each \
		--tx popen//env:KERAS_BACKEND=jax --tx popen//env:KERAS_BACKEND=tensorflow \
		--tx popen//env:KERAS_BACKEND=torch//env:MARKED_ONCE=without \
		--tx popen//env:KERAS_BACKEND=torch//env:MARKED_ONCE=tuning \
		--tx popen//env:KERAS_BACKEND=torch//env:MARKED_ONCE=others

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# One stamp a set of extras: the demo needs one backend, the tests all of them. --no-compile: byte code is made
# at first import, and of most modules never. The lock has what the tests need, no less and no more: where two
# pips can share it (elsewhere the third does all) that takes half of the time.
PIP = $(BIN)/pip install --quiet --no-compile
$(VENV)/jax: EXTRAS = jax
$(VENV)/all: EXTRAS = all,test
$(VENV)/all: FIRST = sort -r constraints.txt | xargs -P 2 -n 40 $(PIP) --no-deps || true
$(VENV)/jax $(VENV)/all: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(FIRST)
	$(PIP) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
