#!/usr/bin/env bash
# ARES on the tiny reasoner, all of it: vanilla cold start, adaptive cold start (AdaCS), then AEPO from the latter.
#
#   bash launch/ares.sh [key=value ...]       for the AEPO run, such as trainer.max_steps=20 overwrite=true
#
# On the CPU: cold starts of about 2 and 4 minutes on a free core, then 60 steps; no GPU, no model hub. Cold starts that
# are finished are kept; the run goes to runs/aepo. Vanilla comes first: its policy measures the
# pass rates that the adaptive one needs.
set -euo pipefail

cd "$(dirname "$0")/.."
export ENTRL_EXTRAS="${ENTRL_EXTRAS-}"  # training needs no extra
# shellcheck source=launch/environment.sh
source launch/environment.sh

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false
entrl cold-start recipes/ares/cold-start-vanilla.yaml
entrl cold-start recipes/ares/cold-start.yaml
entrl train recipes/ares/aepo.yaml "$@"
