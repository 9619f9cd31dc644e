# Sourced by the other scripts: creates .venv with pinned dependencies, and installs missing system packages with apt.
# Safe to repeat: a complete .venv is kept. An incomplete .venv, or one that was moved, is created again.
# usage: source scripts/setup.sh [EXTRAS]        EXTRAS as in pyproject.toml, such as dev

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

_apt() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the system package $* with apt, about half a minute."
    local output
    if ! output=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } 2>&1); then
      echo "$output" >&2
      echo "apt could not install $*; continuing without it." >&2
    fi
  else
    echo "The system package $* is missing; on Debian and Ubuntu, install it with: sudo apt-get install $*" >&2
  fi
}

_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "expected Python 3.11 or later, got none on the PATH; install it, or set PYTHON to its path" >&2
  return 1
}

command -v bwrap >/dev/null || _apt bubblewrap

_extras=${1:-}
_stamp=.venv/.installed${_extras:+-$_extras}
_wanted="$PWD $(cat pyproject.toml constraints.txt | cksum)"
if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
  _interpreter=$(_python)
  if ! "$_interpreter" -c 'import venv, ensurepip' 2>/dev/null; then
    _apt "$("$_interpreter" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    "$_interpreter" -c 'import venv, ensurepip' || {
      echo "expected $_interpreter to have the modules venv and ensurepip, got neither; install its venv package" >&2
      exit 1
    }
  fi
  echo "Installing cycleqd_jax${_extras:+[$_extras]} with JAX, Flax, transformers and matplotlib into .venv, about a minute."
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || [ "$(cat .venv/.place 2>/dev/null)" != "$PWD" ]; then
    rm -rf .venv
    "$_interpreter" -m venv .venv
    echo "$PWD" >.venv/.place
  fi
  # Python compiles a module when it is first imported (see the end); most modules installed here never are.
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore \
    -c constraints.txt -e ".${_extras:+[$_extras]}"
  echo "$_wanted" >"$_stamp"
fi

# Where this is set, as in many containers, every start would compile thousands of modules again: ten seconds each time.
unset PYTHONDONTWRITEBYTECODE
