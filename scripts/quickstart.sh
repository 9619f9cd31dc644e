#!/usr/bin/env bash
# From nothing to an evolved model, its archive and a report in runs/quickstart/, on a laptop.
# Arguments override keys of the config: scripts/quickstart.sh seed=1 output=runs/seed1
set -euo pipefail

cat <<'TEXT'
The quickstart takes 4 to 6 minutes on two fast cores, 10 on slow ones, and needs no GPU:
  1. install cycleqd_jax and its dependencies into .venv                about 1 minute, the first time only
  2. train a tiny base model, 3 experts and a model for comparison      about 2 minutes
  3. evolve merges of the experts with CycleQD                           about 1 minute
  4. score all models on problems none has seen, and write a report      about a minute
Results go to runs/. If you stop the script, run it again: it continues where it stopped.

TEXT
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""

folder=runs/quickstart
for argument in "$@"; do
  case $argument in
    output=*) folder=${argument#output=} ;;
  esac
done

.venv/bin/cycleqd run configs/quickstart.yaml "$@"

cat <<TEXT

Three things to try next:
  1. Open $folder/report.html in a browser: the archives, and every generation.
  2. Ask the evolved model to do something in a shell:
       .venv/bin/cycleqd generate $folder/model "How many lines of ~/logs/todo.txt contain red?"
  3. Evolve experts of your own: docs/tutorials/your-own-experts.md
TEXT
