#!/usr/bin/env bash
# bash run_all.sh        make the environment, run a sweep sized for this machine, write the report
# bash run_all.sh test   make the environment, check style and types, run the tests
#
# VENV=DIR puts the environment elsewhere than .venv; PYTHON=python3.12 makes it with that Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${VENV:-.venv}
python=${PYTHON:-python3}

say() { printf '\n== %s\n' "$*"; }

make_environment() {
    local wanted stamp="$venv/.installed"
    wanted=$(cat requirements.txt pyproject.toml | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "Installing into $venv (the first time takes minutes: torch is large)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "run_all.sh: needs Python 3.11 or newer; name one with PYTHON=python3.12" >&2
        exit 1
    }
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        # Debian and Ubuntu ship Python without it
        [ "$(id -u)" = 0 ] || { echo "run_all.sh: please run: sudo apt-get install python3-venv" >&2; exit 1; }
        apt-get update -qq && apt-get install -y -qq python3-venv
    fi
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
    echo "$wanted" > "$stamp"
}

gpu_gib() {
    nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null |
        awk 'NR == 1 { printf "%d", $1 / 1024 }' || true
}

run_sweep() {
    local gib; gib=$(gpu_gib); gib=${gib:-0}
    local run=("$venv/bin/python" bench/run.py -m)
    if [ "$gib" -eq 0 ]; then
        say "No NVIDIA GPU found: a sweep of small models on the CPU (about two minutes)"
        "${run[@]}" precision=fp32,bf16,int8,nf4 lora=off,on checkpointing=off,on
        "${run[@]}" fsdp=full_shard,shard_grad_op,no_shard fsdp.world_size=2 offload=off,params
    else
        local model=llama-160m
        [ "$gib" -ge 20 ] && model=llama-1b
        [ "$gib" -ge 70 ] && model=llama-7b
        say "A GPU with $gib GiB: a sweep of $model, sequences of 1024 tokens"
        "${run[@]}" model=$model seq_len=1024 micro_batch_size=1 optimizer=adamw_fused \
            precision=fp32,fp16,bf16,bf16_pure,int8,nf4 lora=off,on checkpointing=off,on
    fi
}

case "${1:-all}" in
    all)
        make_environment
        status=0
        run_sweep || status=$? # a trial that failed is part of the report
        say "Report"
        "$venv/bin/python" bench/report.py
        exit "$status"
        ;;
    test)
        make_environment
        say "Style and types"
        "$venv/bin/python" -m ruff check .
        "$venv/bin/python" -m ruff format --check .
        "$venv/bin/python" -m mypy
        say "Tests"
        "$venv/bin/python" -m pytest "${@:2}"
        ;;
    *)
        echo "usage: bash run_all.sh [test [pytest arguments]]" >&2
        exit 2
        ;;
esac
