#!/usr/bin/env bash
# bash tests/slurm/stop.sh [FOLDER]    end the Slurm of start.sh, its jobs with it, and remove FOLDER
# munged stays: other programs may use it.
set -euo pipefail
folder=${1:-/tmp/bench-slurm}
export SLURM_CONF=$folder/slurm.conf
[ -f "$SLURM_CONF" ] || exit 0

timeout 10 scancel --user="$(id -un)" --full 2>/dev/null || true
for _ in $(seq 20); do
    [ -z "$(timeout 10 squeue --noheader 2>/dev/null)" ] && break
    sleep 0.5
done
for file in "$folder"/slurmd.*.pid "$folder"/slurmctld.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 40); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
    done
done
rm -rf "$folder"
