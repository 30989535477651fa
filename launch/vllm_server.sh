#!/usr/bin/env bash
# A vLLM server that generates for a training run on other GPUs of the same machine (TRL's server mode).
#
#   CUDA_VISIBLE_DEVICES=0 bash launch/vllm_server.sh MODEL [trl vllm-serve options]
#   CUDA_VISIBLE_DEVICES=1,2,3 accelerate launch --config_file launch/multi_gpu.yaml --num_processes 3 \
#       -m entrl train RECIPE trainer.use_vllm=true trainer.vllm_mode=server
#
# Needs `pip install entrl[vllm]` and CUDA: TRL pushes the weights over NCCL. Not covered by our tests.
# Listens on this machine only; VLLM_HOST=0.0.0.0 opens it to the network, where anybody may replace its weights.
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
fi
model="$1"
shift
exec trl vllm-serve --model "$model" --host "${VLLM_HOST:-127.0.0.1}" --port "${VLLM_PORT:-8000}" "$@"
