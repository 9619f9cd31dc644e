#!/bin/bash
# A run on several machines as a Slurm job: sbatch scripts/slurm_ray.sh CONFIG [key=value …]
# The job starts a Ray cluster on its machines. The search has the first GPU of the first machine, and every other GPU has a
# worker: 31 on 4 machines of 8 GPUs. The config, the models and the cache lie in a file system that all machines share. As in
# slurm_requeue.sh, the run keeps its scores when its time is over, and the job is put back into the queue.
#
# For models that are divided between GPUs, GPUS_PER_GROUP is mesh.fsdp × mesh.tensor. The search then has the first group of the
# first machine: GPUS_PER_GROUP=4 sbatch scripts/slurm_ray.sh my.yaml mesh.tensor=4
# The cluster accepts programs with the token of this job only. The port depends on the job, so that jobs can share a machine.
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
group="${GPUS_PER_GROUP:-1}"
if ! [ "$group" -ge 1 ] 2>/dev/null || [ $((gpus % group)) -ne 0 ]; then
  echo "expected GPUS_PER_GROUP to divide the $gpus GPUs of a machine, got $group; correct it" >&2
  exit 2
fi
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
visible="${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}"
own=$(cut -d, -f"1-$group" <<<"$visible")
others=$(cut -s -d, -f"$((group + 1))-" <<<"$visible")
CUDA_VISIBLE_DEVICES="$others" ray start --head --port="${address##*:}" --num-gpus=$((gpus - group)) \
  --include-dashboard=false || exit 1
if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
  export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since Slurm 22.05, srun does not take it from the job
  srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    ray start --address="$address" --num-gpus="$gpus" --block &
fi

workers=$((${SLURM_NNODES:-1} * gpus / group - 1))
CUDA_VISIBLE_DEVICES="$own" cycleqd run "$@" ray.address="$address" ray.workers="$workers" &
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
# Slurm ends the cluster with the job: `ray stop` would end those of other jobs on this machine too.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
