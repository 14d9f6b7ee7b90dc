# Each target makes an environment where there is none and installs into it what is missing (.ci/env says how).
#   make demo    the whole method on generated data, in under 5 minutes on 2 cores
#   make test    the tests; ARGS="-k fuse" picks some
#   make check   linter, formatter and type checker; with -k, all three whatever the first says
#   make soak    damage and interruption at random, for 30 minutes
#   make bench   the benchmarks, one script a row of the performance table
#   make docs    the documentation as a site, into site/
# PYTHON=python3.12 picks the interpreter.

ENV := sh .ci/env
ARGS :=

.PHONY: demo test check lint style types soak bench docs

demo:
	@$(ENV) mergekit3d demo --force $(ARGS)

# Two processes of one thread each: most tests use no more, and the time of whole files is shared out between them.
test:
	@OMP_NUM_THREADS=1 $(ENV) python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint style types

lint:
	@$(ENV) python -m ruff check .

style:
	@$(ENV) python -m ruff format --check .

types:
	@$(ENV) python -m mypy

soak:
	@$(ENV) python tests/reliability/soak.py $(ARGS)

bench:
	@$(ENV) sh -e -c 'for script in benchmarks/*.py; do echo "$$script"; python "$$script" $(ARGS); done'

docs:
	@$(ENV) python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 EXTRA=docs $(ENV) mkdocs build --strict --quiet $(ARGS)
