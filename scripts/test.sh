#!/usr/bin/env bash
# Lint, types and tests. Arguments go to pytest: scripts/test.sh -m slow tests/engine
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
export CYCLEQD_DATA="${CYCLEQD_DATA:-$(dirname "$PWD")/shared/data}"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
# Each worker has its part of the tests in order, and takes from another's end when it is done: one is at the long tests of the
# command line while the others are at all the rest.
exec .venv/bin/pytest -n "${WORKERS:-2}" --dist worksteal "$@"
