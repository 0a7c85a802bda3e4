#!/bin/bash
# The shards of a plan by GNU parallel, on this machine or on several with --sshlogin; then the proof. One that fails is begun
# again, twice at most, and passes over what it has done.
#   examples/parallel.sh plan/ model.edgecls [how many at a time]
set -euo pipefail
plan=$1 model=$2 jobs=${3:-2}
# 3 is the exit code of pictures that could not be read: their rows say so
seq 0 "$((jobs - 1))" | parallel --jobs "$jobs" --retries 3 \
    "edgecls predict --plan ${plan@Q} --model ${model@Q} --shard {}/$jobs > /dev/null || [ \$? -eq 3 ]"
edgecls merge "$plan"
