#!/usr/bin/env bash
# Several vLLM servers for one training run, on this machine, until this script is ended.
#
#   bash launch/serve_replicas.sh RECIPE N [key=value ...]       N servers (`entrl serve`)
#
# In the active environment. A server that ends is started again, ENTRL_RESTARTS times; the trainer meanwhile asks
# the others and hands the adapter to the one that came back. Settings:
#   ENTRL_HOST     address to listen on  (default: 127.0.0.1; another one opens the servers to its network)
#   ENTRL_PORT     port of the first server, the next ones count up            (default: 8000)
#   ENTRL_GPUS     GPUs to divide among the servers, such as "0 1 2 3"         (default: all; none on a CPU)
#   ENTRL_URLS     file that the URLs are written to, one a line, once all servers answer
#   ENTRL_LOGS     folder of the logs                                          (default: runs/servers)
#   ENTRL_PATIENCE seconds a server may take until it answers                  (default: 900)
#   ENTRL_RESTARTS how often a server that ended is started again              (default: 3)
#   ENTRL_ALL_URLS, ENTRL_FIRST_REPLICA  where other machines serve the same run: the URLs of all servers with commas
#                  between, and the position of this machine's first one among them, counted from 0
#   ENTRL_VLLM_API_KEY  the key of all servers; made, and kept in the folder of the logs, where it is not set
set -euo pipefail
if [ $# -lt 2 ] || ! [ "$2" -ge 1 ] 2>/dev/null; then
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 2
fi
recipe="$1"
replicas="$2"
shift 2
host="${ENTRL_HOST:-127.0.0.1}"
first="${ENTRL_PORT:-8000}"
logs="${ENTRL_LOGS:-runs/servers}"
patience="${ENTRL_PATIENCE:-900}"
mkdir -p "$logs"

if [ -z "${ENTRL_VLLM_API_KEY:-}" ]; then
    key="$logs/api-key"
    (umask 077 && python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$key")
    ENTRL_VLLM_API_KEY="$(cat "$key")"
    export ENTRL_VLLM_API_KEY
    echo "entrl: trainers need the servers' key: export ENTRL_VLLM_API_KEY=\"\$(cat $key)\"" >&2
fi

visible="${ENTRL_GPUS:-}"
if [ -z "$visible" ] && command -v nvidia-smi >/dev/null; then
    visible="${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | tr '\n' ' ')}"
fi
read -r -a gpus <<<"${visible//,/ }"
each=$((${#gpus[@]} / replicas))
if [ "${#gpus[@]}" -gt 0 ] && [ $((each * replicas)) -ne "${#gpus[@]}" ]; then
    echo "entrl: ${#gpus[@]} GPUs (${gpus[*]}) cannot be divided among $replicas servers; name others in ENTRL_GPUS" >&2
    exit 2
fi

# Its own process group for each server, so that ending it also ends the engine processes it started.
serve() {
    local index="$1" left="${ENTRL_RESTARTS:-3}" code=0
    if [ "$each" -gt 0 ]; then
        local mine="${gpus[*]:index * each:each}"
        export CUDA_VISIBLE_DEVICES="${mine// /,}"
    fi
    while true; do
        set -m
        python -m entrl serve "$recipe" "${overrides[@]}" --replica $((${ENTRL_FIRST_REPLICA:-0} + index)) \
            --host "$host" --port $((first + index)) --timeout "$patience" >>"$logs/server-$index.log" 2>&1 &
        child=$!
        set +m
        trap 'kill -TERM -- "-$child" 2>/dev/null; wait "$child"; exit 0' TERM INT
        code=0
        wait "$child" || code=$?
        kill -KILL -- "-$child" 2>/dev/null || true
        [ "$left" -gt 0 ] || break
        left=$((left - 1))
        echo "entrl: server $index ended with exit code $code, starting it again ($left more times)" >&2
        sleep 2
    done
    echo "entrl: server $index ended with exit code $code and is not started again; see $logs/server-$index.log" >&2
}

urls=()
for ((index = 0; index < replicas; index++)); do
    urls+=("http://$host:$((first + index))")
done
all="${ENTRL_ALL_URLS:-$(IFS=,; echo "${urls[*]}")}"
overrides=("$@" trainer.use_vllm=true trainer.vllm_mode=server "trainer.vllm_replicas=[$all]")

servers=()
stop() {
    trap - EXIT
    [ "${#servers[@]}" -eq 0 ] || kill -TERM "${servers[@]}" 2>/dev/null || true
    wait
}
trap stop EXIT
trap 'exit 143' TERM INT

for ((index = 0; index < replicas; index++)); do
    : >"$logs/server-$index.log"
    serve "$index" &
    servers+=($!)
done

healthy() {
    python - "$1" <<'PYTHON' 2>/dev/null
import sys, urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine's ports
sys.exit(opener.open(sys.argv[1] + "/health", timeout=5).status != 200)
PYTHON
}

for ((index = 0; index < replicas; index++)); do
    url="${urls[index]}"
    until healthy "$url"; do
        if [ "$SECONDS" -gt "$patience" ] || ! kill -0 "${servers[index]}" 2>/dev/null; then
            echo "entrl: server $index does not answer at $url; the end of $logs/server-$index.log:" >&2
            tail -n 30 "$logs/server-$index.log" >&2
            exit 1
        fi
        sleep 1
    done
done
printf '%s\n' "${urls[@]}"
if [ -n "${ENTRL_URLS:-}" ]; then
    printf '%s\n' "${urls[@]}" >"$ENTRL_URLS.part"
    mv "$ENTRL_URLS.part" "$ENTRL_URLS" # complete or not there
fi
wait "${servers[@]}"
exit 1 # all servers have ended for good
