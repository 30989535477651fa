#!/usr/bin/env bash
# Install, then train a tiny model that thinks too long, with PEAR and beside it without, and compare the two.
#
#   bash launch/quickstart.sh [key=value ...]       for example trainer.max_steps=30 trainer.seed=1
#
# About 100 s on 2 quiet cores once installed (a core each); no GPU, no model hub. A second call replaces runs/quickstart
# and runs/quickstart-grpo; with trainer.output_dir=FOLDER (from the repository) they are FOLDER and FOLDER-grpo, and
# nothing is replaced unless overwrite=true says so.
set -euo pipefail

caller="$PWD"
cd "$(dirname "$0")/.."
export ENTRL_EXTRAS="${ENTRL_EXTRAS-}"  # training needs no extra
# shellcheck source=launch/environment.sh
source launch/environment.sh

run=runs/quickstart
again=(overwrite=true)
words=()
for word in "$@"; do
    case "$word" in
        trainer.output_dir=*)
            again=()
            run="${word#*=}"
            ;;
        resume=true)
            again=()
            words+=("$word")
            ;;
        *) words+=("$word") ;;
    esac
done

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# 4 samples of each of the 202 test problems instead of the study's 16
common=(eval.samples=4 "eval.k=[1,4]" ${again[@]+"${again[@]}"} ${words[@]+"${words[@]}"})
with=(trainer.output_dir="$run" "${common[@]}")
without=(trainer.output_dir="$run-grpo" "${common[@]}")

mkdir -p "$(dirname "$run")"
log="$run-grpo.log"
entrl train recipes/overthinker/grpo.yaml ${without[@]+"${without[@]}"} >"$log" 2>&1 &
control=$!
trap 'kill "$control" 2>/dev/null || true' EXIT
entrl train recipes/overthinker/pear.yaml ${with[@]+"${with[@]}"}

echo
if wait "$control"; then
    echo "The same run without PEAR (recipes/overthinker/grpo.yaml):"
    sed -n '/^result/,/^health/p' "$log"
    entrl report "$run" "$run-grpo" --out "$run/comparison.html" >/dev/null
    compared="$(cd "$run" && pwd)/comparison.html"
else
    echo "The run without PEAR did not end well; its last lines ($log):"
    tail -n 5 "$log"
fi
trap - EXIT

report="$(cd "$run" && pwd)/report.html"
echo
echo "Report:   ${report#"$caller"/}   (open it in a browser)"
[ -z "${compared:-}" ] || echo "Compared: ${compared#"$caller"/}"
echo "Model:    ${report%/report.html}/model"
echo "Again:    source ${entrl_venv#"$caller"/}/bin/activate && entrl train recipes/overthinker/pear.yaml"
