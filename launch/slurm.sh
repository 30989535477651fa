#!/usr/bin/env bash
#SBATCH --job-name=entrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@900
#
# Trainers and vLLM servers in one Slurm job: the last machine(s) serve, the others train.
#
#   sbatch launch/slurm.sh RECIPE [key=value ...]      from the root of the repository, in the active environment
#
# The recipe must be one with a LoRA adapter where there are servers: they are sent the adapter alone. The first lines
# of this file are sbatch's; `sbatch --nodes=4 --gpus-per-node=4 ...` wins over them. Settings (sbatch passes them on):
#   ENTRL_CONFIG        accelerate file of the trainers    (default: launch/multi_gpu.yaml)
#   ENTRL_PROCESSES     trainer processes on each machine  (default: 8)
#   ENTRL_REPLICAS      servers on each serving machine    (default: 8; 0: no servers, the recipe generates itself)
#   ENTRL_SERVER_NODES  how many machines serve            (default: 1; 0: the first machine serves and trains, and
#                       ENTRL_SERVER_GPUS="0 1" ENTRL_TRAINER_GPUS="2 3 4 5 6 7" say which GPU does what there)
#   ENTRL_JOB_DIR       folder of logs, key and URLs that all machines see  (default: runs/slurm-<job>)
#   ENTRL_REQUEUES      how often the job is put back into the queue  (default: 50; 0: never)
#
# 900 seconds before its time is over (--signal; also where the cluster preempts with a signal) Slurm tells this script,
# which tells the trainers: they finish the step under way, save it and end, and the job goes back into the queue. It
# starts again with resume=true and goes on as if nothing had been. Ask for more seconds than a step and a checkpoint
# take (`sbatch --signal=B:USR1@3600 ...`). `scancel` ends a job for good.
#
# The servers listen on their machine's own address, behind a key made for this job.
# Not covered by our tests: Slurm itself, several machines. The whole of it runs on one machine against a stand-in for
# srun and scontrol that starts the steps locally (tests/test_launch_machines.py).
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '13,33s/^# \{0,1\}//p' "$0"
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}" # sbatch runs a copy of this file from somewhere else
if [ ! -f launch/trainers.sh ]; then
    echo "entrl: no launch/trainers.sh in $PWD; run sbatch from the root of the repository" >&2
    exit 2
fi
recipe="$1"
shift
words=("$@")
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then # not the first time: go on with what is there
    words=()
    for word in "$@"; do
        case "$word" in resume=* | overwrite=*) ;; *) words+=("$word") ;; esac
    done
    words+=(resume=true)
fi

# Without quotes: one host name a line.
# shellcheck disable=SC2207
hosts=($(scontrol show hostnames "${SLURM_JOB_NODELIST:?not inside a Slurm job; use sbatch}"))
replicas="${ENTRL_REPLICAS:-8}"
serving="${ENTRL_SERVER_NODES:-1}"
[ "$replicas" -gt 0 ] || serving=0
training=$((${#hosts[@]} - serving))
if [ "$training" -lt 1 ]; then
    echo "entrl: $serving of ${#hosts[@]} machines serve and none is left to train; ask for more (sbatch --nodes)," \
        "or set ENTRL_SERVER_NODES=0 to serve and train on one" >&2
    exit 2
fi
trainers=("${hosts[@]:0:training}")
servers=("${hosts[@]:training}")
[ "$serving" -gt 0 ] || servers=("${hosts[0]}")
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one machine should not meet

job="${ENTRL_JOB_DIR:-runs/slurm-$SLURM_JOB_ID}"
mkdir -p "$job"
job="$(cd "$job" && pwd)"
rm -f "$job"/urls.*
if [ -z "${ENTRL_VLLM_API_KEY:-}" ]; then
    (umask 077 && python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$job/api-key")
    ENTRL_VLLM_API_KEY="$(cat "$job/api-key")"
    export ENTRL_VLLM_API_KEY # srun hands the environment on; a command line would show it to everybody
fi

steps=()
trainer=""
asked=""
code=0
end_steps() { # srun answers SIGTERM by killing its tasks, which is right for servers only
    trap - EXIT
    [ "${#steps[@]}" -eq 0 ] || kill -TERM "${steps[@]}" 2>/dev/null || true
    wait
}
ask_to_end() { # srun hands SIGUSR1 on to its tasks
    asked="$1"
    [ -z "$trainer" ] || kill -USR1 "$trainer" 2>/dev/null || true
}
requeue_if_asked() {
    if [ "$asked" = requeue ] && [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${ENTRL_REQUEUES:-50}" ]; then
        echo "entrl: back into the queue; the job goes on from its last checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
trap end_steps EXIT
trap 'ask_to_end requeue' USR1
trap 'ask_to_end end' TERM INT

if [ "$replicas" -gt 0 ]; then
    urls=()
    for host in "${servers[@]}"; do
        for ((i = 0; i < replicas; i++)); do
            urls+=("http://$host:$((port + i))")
        done
    done
    ENTRL_ALL_URLS="$(IFS=,; echo "${urls[*]}")"
    export ENTRL_ALL_URLS
    for ((i = 0; i < ${#servers[@]}; i++)); do
        host="${servers[i]}"
        ENTRL_HOST="$host" ENTRL_PORT="$port" ENTRL_LOGS="$job/$host" ENTRL_URLS="$job/urls.$host" \
            ENTRL_FIRST_REPLICA=$((i * replicas)) ENTRL_GPUS="${ENTRL_SERVER_GPUS:-}" \
            srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" \
            bash launch/serve_replicas.sh "$recipe" "$replicas" "$@" &
        steps+=($!)
    done
    for ((i = 0; i < ${#servers[@]}; i++)); do
        until [ -f "$job/urls.${servers[i]}" ]; do
            if ! kill -0 "${steps[i]}" 2>/dev/null; then
                echo "entrl: the servers on ${servers[i]} did not start; see above and $job/${servers[i]}" >&2
                exit 1
            fi
            if [ -n "$asked" ]; then # nothing was trained yet
                code=143
                end_steps
                requeue_if_asked
                exit "$code"
            fi
            sleep 1
        done
    done
    echo "entrl: servers answer at $ENTRL_ALL_URLS"
    words+=(trainer.use_vllm=true trainer.vllm_mode=server "trainer.vllm_replicas=[$ENTRL_ALL_URLS]")
fi

# In the background, for bash would answer a signal only after the training.
ENTRL_NODES="$training" ENTRL_HEAD="${trainers[0]}" ENTRL_HEAD_PORT=$((port + 5000)) \
    ENTRL_PROCESSES="${ENTRL_PROCESSES:-8}" ENTRL_GPUS="${ENTRL_TRAINER_GPUS:-}" \
    srun --overlap --kill-on-bad-exit=1 --nodes="$training" --ntasks="$training" --ntasks-per-node=1 \
    --nodelist="$(IFS=,; echo "${trainers[*]}")" \
    bash -c 'ENTRL_NODE_RANK="$SLURM_NODEID" exec bash launch/trainers.sh "$@"' trainers \
    "${ENTRL_CONFIG:-launch/multi_gpu.yaml}" "$recipe" ${words[@]+"${words[@]}"} &
trainer=$!
steps+=("$trainer")
[ -z "$asked" ] || ask_to_end "$asked" # it came before there was somebody to tell
while true; do # a signal ends `wait`, not the training
    wait "$trainer" && code=0 || code=$?
    kill -0 "$trainer" 2>/dev/null || break
done
echo "entrl: training ended with exit code $code"
end_steps
requeue_if_asked
exit "$code"
