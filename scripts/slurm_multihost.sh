#!/bin/bash
# A run whose models are divided between several machines, as a Slurm job: sbatch scripts/slurm_multihost.sh CONFIG [key=value …]
# Every machine has one process with all its GPUs; mesh.fsdp × mesh.tensor is the number of all GPUs: mesh.fsdp=4 mesh.tensor=8 on
# 4 machines of 8. The config, the models and the cache lie in a file system that all machines share. As in slurm_requeue.sh, the
# run keeps its scores when its time is over, and the job is put back into the queue. srun returns the highest exit code of the
# processes. All end with the code of the first error, so the job is not put back after one that would come again.
#SBATCH --job-name=cycleqd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

# JAX takes one GPU for each task of a Slurm job, unless an option changes it.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-8} - 1)))
export JAX_LOCAL_DEVICE_IDS
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since Slurm 22.05, srun does not take it from the job
srun --kill-on-bad-exit=0 cycleqd run "$@" --distributed &
run=$!
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to all processes of srun, which itself would kill them after SIGTERM
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
