#!/bin/bash
# A run as a Slurm job that survives time limits and preemption: sbatch scripts/slurm_requeue.sh CONFIG [key=value …]
# Slurm sends SIGTERM two minutes before the time limit. The run then keeps all finished scores, writes a checkpoint and exits
# with code 75, and the job is put back into the queue, where it continues. Any other exit code ends the job.
#SBATCH --job-name=cycleqd
#SBATCH --gpus=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

cycleqd run "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
code=$?
while [ "$code" -eq 143 ]; do # SIGTERM interrupted the wait, or it ended the run
  kill -0 "$run" 2>/dev/null
  over=$?
  wait "$run"
  code=$?
  [ "$over" -eq 0 ] || break
done
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
