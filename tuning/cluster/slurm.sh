#!/bin/bash
# A sweep on nodes that Slurm lends: one of them becomes the head of a Ray cluster, the others join it.
#
#     MLFLOW_TRACKING_URI=http://HOST:5000 sbatch tuning/cluster/slurm.sh
#
# Run from the root of this repository, on a file system that all nodes see, with `.venv` made by `make`.
#SBATCH --job-name=sweep
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00

set -euo pipefail
: "${MLFLOW_TRACKING_URI:?names no MLflow server that all nodes reach}"
source .venv/bin/activate

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs of others may be on the same node
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port

# --block: Slurm ends what a finished `ray start` would leave behind. --overlap: the sweep shares the head's cores.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="${address%:*}" --port="$port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --block &
until ray status --address="$address" > /dev/null 2>&1; do sleep 2; done
if ((${#nodes[@]} > 1)); then
    srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi
# Ray gives trials to the nodes that are there, and to the others when they come.

python -m tuning.sweep mlp_fashion --backend torch --dataset digits --epochs 5 \
    --grid learning_rate=0.01,0.003,0.001 --seeds 4 \
    --address "$address" --cpus-per-trial 4 --tracking-uri "$MLFLOW_TRACKING_URI"
