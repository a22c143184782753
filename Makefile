# Everything starts here: `make` lists the targets.

PYTHON  ?= python3
PROFILE ?= smoke
WORKERS ?= 2

BIN   := .venv/bin
READY := .venv/.ready
NBS   := nbs/experiments

# The venv's own kernel first, whatever kernels its user has; and no debugger's warning among the progress lines.
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Threads that wait for one another sleep: on a crowded machine spinning takes many times as long, on a free one it gains a little.
export OMP_WAIT_POLICY ?= passive

.PHONY: help install study request cifar10 celeba site test test-all check export lab clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=$(PYTHON) makes .venv; PROFILE=$(PROFILE) is for cifar10 and celeba; WORKERS=$(WORKERS) processes run the tests."

# Installed once, and again only when the requirements change.
$(READY): settings.ini setup.py
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "unlearning needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: about 4 minutes and 6 GB the first time."
	@$(BIN)/python -m pip install --use-pep517 -e '.[dev]'
	@mkdir -p .venv/etc/ipython && echo "get_config().IPKernelApp.log_level = 'ERROR'" > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@

# $(call run,notebook,folder,more papermill options): the notebook's stderr, its progress, goes to the terminal as it comes.
define run
@mkdir -p $(2)
@echo "Running $(1) into $(2)/"
@$(BIN)/papermill $(1) $(2)/$(notdir $(1)) -k python3 $(3) -p out $(2) --no-progress-bar --log-level ERROR --stderr-file -
@$(BIN)/jupyter nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True --log-level ERROR $(2)/$(notdir $(1))
@echo && cat $(2)/tables.txt && echo
@echo "Executed notebook: $(2)/$(notdir $(1))"
@echo "As a web page:     $(2)/$(notdir $(1:.ipynb=.html))"
endef

install: $(READY)  ## .venv, with all that is needed: about 4 minutes and 6 GB

study: $(READY)  ## the paper's methods on wrong labels, digits and rendered faces: 5 minutes on two cores
	$(call run,$(NBS)/noisy_labels.ipynb,runs/noisy_labels,-p seeds 4)
	$(call run,$(NBS)/quickstart.ipynb,runs/quickstart)
	$(call run,$(NBS)/celeba.ipynb,runs/faces,-p images 2000 -p share 0.08 -p epochs 20.0 -p batch_size 64 -p seeds 4 -p samples 0)

request: $(READY)  ## a deletion request, on an example that it makes: from a checkpoint and a list of files to a report
	@mkdir -p runs/request
	@$(BIN)/papermill $(NBS)/request.ipynb runs/request/request.ipynb -k python3 -p out runs/request \
	  -p request_id example-$$(date +%Y%m%d-%H%M%S) --no-progress-bar --log-level ERROR --stderr-file -
	@echo "Executed notebook: runs/request/request.ipynb"
	@echo "The answer:        $$(ls -d runs/request/example-*/ | tail -1)report.html"

cifar10: $(READY) $(NBS)/profiles/cifar10/$(PROFILE).yaml  ## the CIFAR-10 study: make cifar10 PROFILE=laptop
	$(call run,$(NBS)/cifar10.ipynb,runs/cifar10-$(PROFILE),-f $(NBS)/profiles/cifar10/$(PROFILE).yaml)

celeba: $(READY) $(NBS)/profiles/celeba/$(PROFILE).yaml  ## the study of people: make celeba PROFILE=writers
	$(call run,$(NBS)/celeba.ipynb,runs/celeba-$(PROFILE),-f $(NBS)/profiles/celeba/$(PROFILE).yaml)

site: $(READY)  ## the web site of all pages, from the outputs that are committed: _site/index.html
	@$(BIN)/python nbs/site/build.py _site
	@echo "Open _site/index.html, or serve the folder (search needs that): $(BIN)/python -m http.server -d _site"

# A test that hangs is ended after half an hour, and named.
PYTEST := -m pytest -q -rs -n $(WORKERS) --dist worksteal --durations 10 --timeout 1800 -o empty_parameter_set_mark=fail_at_collect

test: $(READY)  ## one pytest run over the pages and tests/, without the longest: two tours, most experiments, some requests and the site
	@$(BIN)/python $(PYTEST) -m "not slow"

test-all: $(READY)  ## those too, as continuous integration does
	@$(BIN)/python $(PYTEST)

# $(call regenerate,folder of programs), in the current folder. nbdev exports nothing while IN_TEST is set.
regenerate = unset IN_TEST && $(1)/nbdev_export && $(1)/nbdev_clean && $(1)/python nbs/readme.py

check: $(READY)  ## fail if unlearning/, README.md or a notebook is out of step with nbs/
	@set -e; failed=; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	cp -R settings.ini README.md nbs unlearning "$$copy"; find "$$copy/unlearning" -name '*.py' -delete; \
	(cd "$$copy" && $(call regenerate,$(CURDIR)/$(BIN))); \
	for path in README.md nbs unlearning; do \
	  diff -r -x __pycache__ -x .ipynb_checkpoints "$$path" "$$copy/$$path" >> "$$copy/diff" || failed=yes; done; \
	cut -c 1-160 "$$copy/diff"; \
	if [ "$$failed" ]; then echo "Out of step with nbs/ (< as it is, > as it should be): run 'make export'" \
	  "and delete what no notebook exports."; exit 1; fi
	@echo "unlearning/, README.md and every notebook are in step with nbs/."

export: $(READY)  ## write unlearning/ and README.md from nbs/, and clean the notebooks
	@$(call regenerate,$(BIN))

lab: $(READY)  ## open JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=.

clean:  ## remove caches and build files; .venv, runs/ and data/ stay
	@rm -rf .pytest_cache _docs _proc _site build dist
	@find nbs tests unlearning -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
