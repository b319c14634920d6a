# make train: train a captioner, then caption unseen images; make test: run the tests; make check: style, types,
# imports; make benchmark: the tables of benchmarks/README.md for this machine, in ten minutes; make site: the pages as
# a web site, build/site/index.html; make tour: run the notebook and store its outputs
PYTHON ?= python3
RUN = .venv/bin/python

train: .venv/installed
	$(RUN) train_lstm_attention.py @recipes/scenes.args
	$(RUN) test_lstm_attention.py --checkpoint cv/attn_best.pt --num-samples 6 --out outputs

test: .venv/installed
	$(RUN) -m pytest -n auto --dist loadfile

benchmark: .venv/installed
	$(RUN) -m benchmarks.all

site: .venv/docs-installed
	$(RUN) -m docs.scripts.site

tour: .venv/docs-installed
	$(RUN) -m docs.scripts.tour

check: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

.venv/docs-installed: requirements-docs.txt .venv/installed
	$(RUN) -m pip install -q -r requirements-docs.txt
	touch $@

clean:
	rm -rf cv outputs .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache build

.PHONY: train test benchmark site tour check clean
