#!/bin/bash
# 64 tasks of a Slurm array share the shards of a plan; done ones are passed over, so the same command goes on after a fault:
#   edgecls plan photos/ -o plan/ --shard-size 50000
#   sbatch examples/slurm.sh
#   edgecls merge plan/ -o predictions.parquet
#SBATCH --job-name=edgecls
#SBATCH --array=0-63
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --requeue
set -euo pipefail
# 3 is the exit code of pictures that could not be read: their rows say so
edgecls predict --plan plan/ --model model.edgecls --shard "${SLURM_ARRAY_TASK_ID}/${SLURM_ARRAY_TASK_COUNT}" || [ $? -eq 3 ]
