#!/usr/bin/env bash
# From nothing to an evolved model, its archive and a report, on a laptop, in minutes: runs/quickstart/.
# Arguments are overrides of the config: scripts/quickstart.sh seed=1 output=runs/seed1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
exec .venv/bin/python -m cycleqd_jax.cli run configs/quickstart.yaml "$@"
