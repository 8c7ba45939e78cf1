#!/usr/bin/env bash
#SBATCH --job-name=diffusion-llm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on as many nodes as SLURM gives, and goes on by itself after the time limit. Submit from this repository:
#
#   sbatch examples/slurm.sh RUN_DIR --config examples/llada_sft.yaml [--any_parameter value ...]
#
# One parent a node, and it starts a process a GPU. Five minutes before the limit (--signal above; give a big model longer) the run
# saves and stops, and the job is queued again with the same arguments: `--resume true` then continues RUN_DIR. Every node must find
# the model and the data; RUN_DIR has to outlive the job. `scancel` ends the job for good, and so does a run that is done or failed.
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
  echo "usage: sbatch examples/slurm.sh RUN_DIR [parameters of main.py train]" >&2
  exit 2
fi
run_dir=$1
shift
cd "${SLURM_SUBMIT_DIR:?this script runs under sbatch}"
mkdir -p "$run_dir"

export PYTHON="${PYTHON:-.venv/bin/python}"
arguments=(--run_dir "$run_dir" --resume true "$@")
if ((SLURM_NNODES > 1)); then
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # A port of the job's own, the same on every node and after each requeue.
  arguments+=(--num_machines "$SLURM_NNODES" --main_process_ip "${hosts%%$'\n'*}" --main_process_port $((20000 + SLURM_JOB_ID % 10000)))
fi

asked_to_stop=
on_limit() {
  asked_to_stop=yes
  touch "$run_dir/STOP"
}
trap on_limit USR1

# Each node tells its own number; the quoted $ are for the node's shell.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'exec "$PYTHON" main.py train "$@" --machine_rank "$SLURM_NODEID"' train "${arguments[@]}" &
step=$!
code=0
wait "$step" || code=$?
if [[ -n $asked_to_stop ]]; then # the signal ended the first wait, not the run
  code=0
  wait "$step" || code=$?
fi

if [[ -n $asked_to_stop ]] && ((code == 0)) && grep -q '"outcome": "stopped"' "$run_dir/run.json"; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
