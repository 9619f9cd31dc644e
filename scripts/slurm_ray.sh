#!/bin/bash
# A run on several machines as a Slurm job: sbatch scripts/slurm_ray.sh CONFIG [key=value …]
# The job starts a Ray cluster on its machines. The search has the first GPU of the first machine, and every other GPU has a
# worker: 31 on 4 machines of 8 GPUs. The config, the models and the cache lie in a file system that all machines share. As in
# slurm_requeue.sh, the run keeps its scores when its time is over, and the job is put back into the queue.
#SBATCH --job-name=cycleqd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

gpus="${SLURM_GPUS_ON_NODE:-8}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:${RAY_PORT:-6379}"
others=$(seq -s, 1 $((gpus - 1)))
CUDA_VISIBLE_DEVICES="$others" ray start --head --port="${address##*:}" --num-gpus=$((gpus - 1)) --include-dashboard=false
if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
  srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    ray start --address="$address" --num-gpus="$gpus" --block &
fi

workers=$((SLURM_NNODES * gpus - 1))
CUDA_VISIBLE_DEVICES=0 cycleqd run "$@" ray.address="$address" ray.workers="$workers" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
code=$?
if [ "$code" -eq 143 ]; then # SIGTERM interrupted the wait, not the run
  wait "$run"
  code=$?
fi
ray stop
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
