# Two commands matter on a fresh machine: `make quickstart` and `make test`.
# `make PY=python3.12 VENV=~/envs/strata test` uses another interpreter, or an environment that you have.

PY ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.strata-installed
QUICKSTART := runs/quickstart

.PHONY: help install quickstart test check docs soak gpu-check lock study scaling-study ablation-study frey-study grouped-study

help:
	@echo "make quickstart   train a tiny NVAE and a flat VAE on rendered dSprites, compare them (about seven minutes on two cores)"
	@echo "make test         the test suite (two cores, no GPU needed)"
	@echo "make check        ruff and mypy"
	@echo "make docs         the documentation as a site in site/"
	@echo "make gpu-check    correctness and speed on one GPU, ten minutes; on a CPU, the parts that need no GPU"
	@echo "make soak         long reliability runs"
	@echo "make study        NVAEs of 1, 2, 3 scales against flat VAEs on dSprites and CelebA, with a report (CELEBA=folder; resumable)"
	@echo "make scaling-study  what depth, width, scales and data buy, with a report (CELEBA=folder; resumable)"
	@echo "make ablation-study  the dSprites recipe with each ingredient of NVAE switched off, with a report (resumable)"
	@echo "make frey-study   beta sweep on Frey Faces with a report (FREY=folder with frey_rawface.mat; resumable)"
	@echo "make grouped-study  Grouped-VAE on dSprites with a report (PROTOCOL=reduced for two cores; full needs a GPU)"

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@test -x $(RUN) || $(PY) -m venv $(VENV) || { \
	  echo "error: $(PY) cannot make a virtual environment"; \
	  echo "  fix: install it (Debian: apt install python3-venv), or give one that you have: make VENV=path"; exit 2; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c requirements.lock
	@touch $@

quickstart: $(STAMP)
	$(RUN) launch/quickstart.py --out $(QUICKSTART)

# loadfile: tests of one file run in one process, which trains the run that they share only once.
# Bytecode is kept: without it every worker and every script that a test starts would compile the same modules again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)
	$(RUN) -m pytest -n 4 --dist loadfile -m "not gpu and not soak"

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Ten minutes of one GPU (without one, the parts that need none); results in runs/gpu-check.
gpu-check: $(STAMP)
	$(RUN) -m benchmarks.gpu_check --budget 540 --out runs/gpu-check

soak: $(STAMP)
	$(RUN) -m pytest -m soak

# Names and versions only: no address of any index.
lock:
	$(RUN) -m pip freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton)|@' > requirements.lock

# A stopped study continues. Reports: docs/studies/. STUDY_FLAGS holds further flags of the script, such as --seeds 5.
study: $(STAMP)
	$(RUN) launch/studies/hierarchy.py $(if $(CELEBA),--celeba-root $(CELEBA)) $(STUDY_FLAGS)

scaling-study: $(STAMP)
	$(RUN) launch/studies/scaling.py $(if $(CELEBA),--celeba-root $(CELEBA)) $(STUDY_FLAGS)

ablation-study: $(STAMP)
	$(RUN) launch/studies/ablation.py $(STUDY_FLAGS)

frey-study: $(STAMP)
	$(RUN) launch/studies/frey.py $(if $(FREY),--data-root $(FREY))

PROTOCOL ?= full
grouped-study: $(STAMP)
	$(RUN) launch/studies/grouped.py --protocol $(PROTOCOL)
