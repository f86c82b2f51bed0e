#!/usr/bin/env bash
# bash run_all.sh        make the environment, run a sweep sized for this machine, write the report
# bash run_all.sh test   make the environment, check style and types, run the tests
#
# bash run_all.sh card   what a machine with a GPU should measure, in $CARD_BUDGET seconds (540), with the Python
#                        that is there and without a network; run again, it goes on (conf/card.toml)
#
# The steps of .github/workflows/nightly-gpu.yml, in its order; all they make is in results/nightly:
# bash run_all.sh setup        make the environment
# bash run_all.sh reference    run the sweep, each trial five times, interleaved
# bash run_all.sh report       write its report
# bash run_all.sh compare      compare it with the baseline accepted for this device; 1 if something got worse
# bash run_all.sh benchmarks   time the harness itself, and compare with the last time; 1 if it got slower
# bash run_all.sh summary      print the comparison and the report, or append them to $GITHUB_STEP_SUMMARY
#
# VENV=DIR puts the environment elsewhere than .venv; PYTHON=python3.12 makes it with that Python.
# SWEEP="WORDS OF bench/run.py" is run in place of the sweep sized for this machine; with NEEDS_GPU=true
# `reference` fails where there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${VENV:-.venv}
python=${PYTHON:-python3}
nightly=results/nightly
wait_for_lock="-o DPkg::Lock::Timeout=600"
unset PYTHONDONTWRITEBYTECODE # each process would compile all libraries again

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
        apt-get update -qq && apt-get $wait_for_lock install -y -qq python3-venv
    fi
    "$python" -m venv "$venv"
    # Of 18,000 files 4,000 are ever imported: bytecode is written then, and not now.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
    echo "$wanted" > "$stamp"
}

find_browser() { # the report's page is tested in one
    command -v chromedriver >/dev/null && return
    say "Installing Chromium for the tests of the report"
    [ "$(id -u)" = 0 ] && apt-get update -qq &&
        apt-get $wait_for_lock install -y -qq chromium chromium-driver >/dev/null ||
        echo "run_all.sh: no chromedriver: the tests of the report in a browser will be skipped" >&2
}

gpu_gib() {
    nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null |
        awk 'NR == 1 { printf "%d", $1 / 1024 }' || true
}

run_sweep() { # words for all of it
    local gib words status=0; gib=$(gpu_gib); gib=${gib:-0}
    local run=("$venv/bin/python" bench/run.py -m "$@")
    if [ -n "${SWEEP:-}" ]; then
        read -ra words <<< "$SWEEP"
        "${run[@]}" "${words[@]}"
    elif [ "$gib" -eq 0 ]; then
        echo "No NVIDIA GPU found: a sweep of small models on the CPU"
        "${run[@]}" precision=fp32,bf16,int8,nf4 lora=off,on checkpointing=off,on || status=$?
        "${run[@]}" fsdp=full_shard,shard_grad_op,no_shard fsdp.world_size=2 offload=off,params || status=$?
        return "$status"
    else
        local model=llama-160m tokens=1024
        [ "$gib" -ge 20 ] && model=llama-1b
        [ "$gib" -ge 70 ] && model=llama-7b tokens=2048 # a step long enough for the GPU, not Python, to set its time
        echo "A GPU with $gib GiB: a sweep of $model, sequences of $tokens tokens"
        "${run[@]}" model=$model seq_len=$tokens micro_batch_size=1 optimizer=adamw_fused \
            precision=fp32,fp16,bf16,bf16_pure,bf16_autocast,int8,nf4 lora=off,on checkpointing=off,on
    fi
}

run_benchmarks() { # arguments of pytest
    local storage="$nightly/benchmarks" last compare=()
    mkdir -p "$storage"
    last=$(find "$storage" -name '[0-9]*.json' | sort | tail -n 1)
    if [ -n "$last" ]; then
        # Wall clocks vary from night to night; CONTRIBUTING.md says by how much.
        compare=(--benchmark-compare="$last" --benchmark-compare-fail=median:25%)
    else
        say "No earlier run in $storage: nothing to compare with"
    fi
    "$venv/bin/python" -m pytest tests/benchmarks -m '' --benchmark-enable --benchmark-only \
        --benchmark-storage="$storage" --benchmark-autosave --benchmark-json="$nightly/benchmarks.json" \
        "${compare[@]}" "$@"
}

case "${1:-all}" in
    all)
        make_environment
        status=0
        say "Measuring (about two minutes on a CPU)"
        run_sweep || status=$? # a trial that failed is part of the report
        say "Predicting the same trials, without running them"
        run_sweep method=simulate || status=$?
        run_sweep method=estimate formula=closed_form,rule_of_thumb || status=$?
        say "Putting the literature's claims to the test, at their own scale"
        "$venv/bin/python" bench/claims.py
        say "Report and notebooks"
        "$venv/bin/python" bench/report.py notebooks=true
        exit "$status"
        ;;
    test)
        find_browser & # downloads while the environment is made
        browser=$!
        make_environment
        wait $browser
        say "Style"
        "$venv/bin/python" -m ruff check .
        "$venv/bin/python" -m ruff format --check .
        "$venv/bin/lint-imports" --no-cache --no-logo
        say "Tests, and types beside them"
        status=0 types_log=$(mktemp)
        "$venv/bin/python" -m mypy > "$types_log" 2>&1 &
        types=$!
        # What fails in a trap becomes the exit status: after `wait` there is nothing to kill.
        trap 'kill $types 2>/dev/null || true; rm -f "$types_log"' EXIT
        # Side by side, a core each; tests/conftest.py says which stay together. `-n 0`: one after the other.
        "$venv/bin/python" -m pytest -n logical --maxprocesses=4 --dist loadscope --no-loadscope-reorder \
            --durations=10 "${@:2}" || status=$?
        say "Types"
        wait $types || status=1
        cat "$types_log"
        exit $status
        ;;
    card)
        here="$venv/bin/python"
        [ -x "$here" ] || here=$python
        exec "$here" -m bench.sweep.card.day budget_seconds="${CARD_BUDGET:-540}" "${@:2}"
        ;;
    setup) make_environment ;;
    reference)
        if [ -n "${NEEDS_GPU:-}" ] && [ -z "$(gpu_gib)" ]; then
            echo "run_all.sh: NEEDS_GPU is set, and nvidia-smi finds no GPU" >&2
            exit 1
        fi
        if [ -e "$nightly/trials" ]; then
            echo "run_all.sh: $nightly/trials is there already, and its rows would count as new: move it" >&2
            exit 1
        fi
        say "Reference sweep, each trial five times"
        run_sweep replicates=5 results_dir="$nightly"
        ;;
    report) "$venv/bin/python" bench/report.py results_dir="$nightly" ;;
    compare)
        "$venv/bin/python" bench/compare.py baseline_ref=auto candidate="$nightly" \
            markdown="$nightly/comparison.md"
        ;;
    benchmarks) run_benchmarks "${@:2}" ;;
    summary)
        for page in "$nightly/comparison.md" "$nightly/report/summary.md"; do
            cat "$page" 2>/dev/null || echo "There is no $page: see the steps before this one."
            echo
        done >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"
        ;;
    *)
        echo "usage: bash run_all.sh [test [pytest arguments] | card | setup | reference | report | compare |" \
            "benchmarks [pytest arguments] | summary]" >&2
        exit 2
        ;;
esac
