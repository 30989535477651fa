#!/usr/bin/env bash
# The training processes of this machine; run it once on every machine that trains.
#
#   bash launch/trainers.sh CONFIG RECIPE [key=value ...]        CONFIG: an accelerate file of this folder
#
# On one machine that is `accelerate launch --config_file CONFIG -m entrl train RECIPE`, and the run refuses to begin
# with another number of processes than asked for. In the active environment. Settings for several machines:
#   ENTRL_NODES      how many train                          (default: the file's num_machines)
#   ENTRL_NODE_RANK  which of them this is, counted from 0   (default: 0)
#   ENTRL_HEAD       address of machine 0, for all of them
#   ENTRL_HEAD_PORT  a free port on it                       (default: 29500)
#   ENTRL_PROCESSES  processes on each machine               (default: the file's num_processes / num_machines)
#   ENTRL_GPUS       GPUs of this machine to train on, such as "2 3" (default: all)
#   ENTRL_PATIENCE_TO_SAVE  seconds the ranks have, after a signal, for the step under way and its checkpoint
#                    (default: 3600; the launcher's own is 30)
# SIGTERM, SIGUSR1 and Ctrl-C end the run at its next step, saved; `entrl train` with resume=true goes on from there.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0"
    exit 2
fi
config="$1"
recipe="$2"
shift 2
for file in "$config" "$recipe"; do
    [ -f "$file" ] || { echo "entrl: there is no file $file" >&2; exit 2; }
done

value_of() { sed -n "s/^$1: *\([0-9][0-9]*\).*/\1/p" "$config"; }
in_file="$(value_of num_machines)"
nodes="${ENTRL_NODES:-${in_file:-1}}"
if [ -n "${ENTRL_PROCESSES:-}" ]; then
    processes="$ENTRL_PROCESSES"
else
    total="$(value_of num_processes)"
    processes=$((${total:-1} / ${in_file:-1}))
fi
world=$((nodes * processes))
rank="${ENTRL_NODE_RANK:-0}"

machines=(--num_machines "$nodes" --num_processes "$world" --machine_rank "$rank")
if [ "$nodes" -gt 1 ]; then
    if [ -z "${ENTRL_HEAD:-}" ]; then
        echo "entrl: $nodes machines need ENTRL_HEAD, an address of the first one that the others can reach" >&2
        exit 2
    fi
    machines+=(--main_process_ip "$ENTRL_HEAD" --main_process_port "${ENTRL_HEAD_PORT:-29500}")
elif [ "$world" -gt 1 ]; then
    machines+=(--main_process_port "${ENTRL_HEAD_PORT:-0}") # 0: accelerate takes a free one
fi
if [ -n "${ENTRL_GPUS:-}" ]; then
    export CUDA_VISIBLE_DEVICES="${ENTRL_GPUS// /,}"
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${ENTRL_PATIENCE_TO_SAVE:-3600}"

# A cluster may send SIGUSR1 to every process of a step. Launcher and ranks ignore it and are told by SIGTERM, once.
asked=""
ask_to_end() {
    [ -n "$asked" ] || kill -TERM "$launcher" 2>/dev/null || true
    asked=yes
}
(
    trap '' USR1
    exec python -m accelerate.commands.launch --config_file "$config" "${machines[@]}" \
        -m entrl train "$recipe" "$@" "launch.world_size=$world"
) &
launcher=$!
trap ask_to_end USR1 TERM INT
code=0
while true; do # a signal ends `wait`, not what it waits for
    wait "$launcher" && code=0 || code=$?
    kill -0 "$launcher" 2>/dev/null || break
done
exit "$code"
