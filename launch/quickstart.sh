#!/usr/bin/env bash
# Install, then train the tiny reasoner with PEAR and KL-Cov on the CPU, evaluating it before and after.
#
#   bash launch/quickstart.sh [key=value ...]       for example trainer.max_steps=40 trainer.seed=1
#
# Under 6 minutes on 2 cores once installed; no GPU, no model hub. A second call replaces runs/quickstart;
# with trainer.output_dir=FOLDER (from the repository) it goes there and nothing is replaced unless overwrite=true says so.
set -euo pipefail

caller="$PWD"
cd "$(dirname "$0")/.."
export ENTRL_EXTRAS="${ENTRL_EXTRAS-}"  # training needs no extra
# shellcheck source=launch/environment.sh
source launch/environment.sh

where=(trainer.output_dir=runs/quickstart overwrite=true)
run=runs/quickstart
for word in "$@"; do
    case "$word" in
        trainer.output_dir=*)
            where=()
            run="${word#*=}"
            ;;
        resume=true) where=(trainer.output_dir=runs/quickstart) ;;
    esac
done

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false
entrl train recipes/tiny-reasoner/pear-kl-cov.yaml ${where[@]+"${where[@]}"} "$@"

report="$(cd "$run" && pwd)/report.html"
if [ ! -f "$report" ]; then
    "$PYTHON" -m entrl report "$run" --out "$report"
fi
echo
echo "Report:  ${report#"$caller"/}   (open it in a browser)"
echo "Model:   ${report%/report.html}/model"
echo "Again:   source ${entrl_venv#"$caller"/}/bin/activate && entrl train recipes/tiny-reasoner/grpo.yaml"
echo "Compare: entrl report $run runs/grpo"
