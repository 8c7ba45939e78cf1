# Every target does its own set-up on a fresh machine and is quick when repeated.
VENV := .venv
PYTHON := $(VENV)/bin/python
BASE ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(if $(shell $(name) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo yes),$(name))))

.PHONY: setup demo studio-test test quick contract float8 datatrove lm-eval faults fuzz check lock manifest bench gpu scaling pictures

$(PYTHON):
	@test -n "$(BASE)" || { echo "Python 3.11 or 3.12 is needed" >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1; then uv venv --quiet --python $(BASE) $(VENV); else $(BASE) -m venv $(VENV); fi

setup: $(PYTHON)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) bash setup.sh --dev

# Trains a small model from scratch to spell numbers, asks it for held-out ones, and chats in a terminal.
demo: setup
	@$(PYTHON) examples/demo.py

test: setup
	@$(PYTHON) -m pytest -n 2 --dist worksteal

# All but the tests that start the programs or compute for seconds: about two minutes on two cores.
quick: setup
	@$(PYTHON) -m pytest -n 2 --dist worksteal -m "not end_to_end and not slow and not contract and not fuzz and not float8 and not datatrove and not lm_eval and not browser"

# Every host against one suite, with the real parts there are; prints host x scenario. The SDK stays out of $(VENV): see the file.
contract: setup .contract/lab .contract/form/node_modules/.package-lock.json
	@OMP_NUM_THREADS=1 $(PYTHON) tests/contract/table.py

# Installs a lock into the target's folder, which the programs do not see.
define INSTALL_ASIDE
@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(PYTHON) --require-hashes --no-deps --target $(@D) -r $<; \
else $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(@D) -r $<; fi
@$(PYTHON) -W ignore -m compileall -qq -j 0 $(@D) >/dev/null || true # uv leaves no bytecode, and tests take a compiler's warning for an error
@touch $@
endef

.contract/lab: requirements-contract.txt
	$(INSTALL_ASIDE)

# float8 training on a CPU, with the real torchao.
float8: setup .float8/torchao
	@PYTHONPATH=$(CURDIR)/.float8 $(PYTHON) -m pytest tests/models/linear/test_float8.py tests/end_to_end/test_float8.py -m float8

.float8/torchao: requirements-float8.txt
	$(INSTALL_ASIDE)

# prepare's steps by datatrove's local executor, with a task that crashes; its signatures beside datasketch's.
datatrove: setup .datatrove/datatrove
	@PYTHONPATH=$(CURDIR)/.datatrove $(PYTHON) -m pytest tests/corpus/test_datasketch.py tests/end_to_end/test_datatrove.py -m datatrove

.datatrove/datatrove: requirements-datatrove.txt
	$(INSTALL_ASIDE)

# Tasks of lm-evaluation-harness, as local YAML files.
lm-eval: setup .lm-eval/lm_eval
	@PYTHONPATH=$(CURDIR)/.lm-eval $(PYTHON) -m pytest tests/end_to_end/test_lm_eval.py -m lm_eval

.lm-eval/lm_eval: requirements-lm-eval.txt
	$(INSTALL_ASIDE)

# The studio's whole flow in Debian's Chromium; its screens are in tests/artifacts.
studio-test: setup
	@command -v chromium >/dev/null 2>&1 || { echo "chromium is needed: apt-get install chromium" >&2; exit 1; }
	@$(PYTHON) -m pytest $(wildcard tests/end_to_end/test_studio*.py) -m browser

# The form library of the app's plugin era. Without npm the table says that its form was not tried.
.contract/form/node_modules/.package-lock.json: $(addprefix tests/contract/form/,package.json package-lock.json .npmrc)
	@if command -v npm >/dev/null 2>&1; then mkdir -p .contract/form && cp $^ .contract/form && cd .contract/form && npm ci --ignore-scripts --loglevel=error >/dev/null; fi

check: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pyright
	@$(PYTHON) -m plugin.config.manifest --check
	@$(PYTHON) docs/files.py --check
	@$(PYTHON) -m plugin.run.schema --check
	@$(MAKE) --no-print-directory test

# Every fault that users were promised to survive, injected for real; `make faults ROWS=kill` plays one group.
ROWS ?=
faults: setup
	@PYTHONPATH=tests:. $(PYTHON) -m faults.table $(ROWS)

# Generated inputs of every kind against the promise of bad input: about a minute; `make fuzz EXAMPLES=2000 SEED=1` looks further.
EXAMPLES ?= 100
SEED ?= 0
fuzz: setup
	@EXAMPLES=$(EXAMPLES) $(PYTHON) -m pytest tests/fuzz -m fuzz -n 2 --hypothesis-seed=$(SEED) --durations=6 --durations-min=1

# After a change of a version in a lock: the hashes of every file of each package, for every platform. Needs uv.
lock:
	@for lock in requirements*.txt; do \
		{ grep "^#" $$lock; uv pip compile --quiet --no-deps --no-header --no-annotate --universal --python-version 3.11 --generate-hashes $$lock; } > .lock \
		&& mv .lock $$lock || exit 1; done

# The generated files: the form, the table of parameters, the map of files.
manifest: setup
	@$(PYTHON) -m plugin.config.manifest
	@$(PYTHON) docs/files.py
	@$(PYTHON) -m plugin.run.schema --write

# Real tokens a second against dLLM's padded rectangle; fails naming every bar missed. `make bench DEVICE=cuda` for the real shapes,
# in groups of at most four minutes: CASES=small,encoder,lora,full,float8,worker
DEVICE ?= cpu
bench: setup
	@$(PYTHON) benches/throughput.py --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--bars --save benches/results/cpu-$$(date +%F).json,$(if $(CASES),--cases $(CASES)))

# Every method on a real GPU as users start it, at most eight minutes: a table and benches/results/gpu-DATE.json. Without a GPU a
# rehearsal of the same program. On a machine with packages of its own: make gpu PYTHON=python3
gpu: $(if $(filter $(VENV)/bin/python,$(PYTHON)),setup)
	@$(PYTHON) benches/gpu_matrix.py $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --rehearse)

# What grows with the data, with the length of a document and with the vocabulary: tables and a picture.
scaling: setup
	@$(PYTHON) benches/scaling.py --picture benches/results/scaling.png --save benches/results/scaling.json

# The README's pictures, from a run of their own, and TensorBoard's other tabs in runs/pictures to look at. Needs chromium.
pictures: setup
	@$(PYTHON) examples/pictures.py
