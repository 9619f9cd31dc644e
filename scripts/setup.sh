# Sourced by the other scripts: makes .venv with pinned dependencies, and installs what apt has where it may.
# Safe to repeat: what is there is left alone, and a .venv that is half made or was moved is made again.
# usage: source scripts/setup.sh [EXTRAS]        EXTRAS as in pyproject.toml, such as dev

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

_apt() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $* with apt"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null ||
      echo "apt could not install $*; going on without" >&2
  else
    echo "not installed: $* (on Debian and Ubuntu: sudo apt-get install $*)" >&2
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
  echo "Python 3.11 or later is needed; set PYTHON to one." >&2
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
    "$_interpreter" -c 'import venv, ensurepip' || { echo "$_interpreter can't make virtual environments." >&2; exit 1; }
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || [ "$(cat .venv/.place 2>/dev/null)" != "$PWD" ]; then
    rm -rf .venv
    "$_interpreter" -m venv .venv
    echo "$PWD" >.venv/.place
  fi
  echo "installing cycleqd_jax${_extras:+[$_extras]} into .venv (a minute or so)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${_extras:+[$_extras]}"
  echo "$_wanted" >"$_stamp"
fi
