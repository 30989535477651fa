#!/usr/bin/env bash
# Make (or reuse) the virtual environment every script here runs in.
#
#   source launch/environment.sh            # leaves $PYTHON pointing at it
#
# The second call costs about a second: a stamp in the environment remembers what was installed from which
# pyproject.toml and constraints.txt. Settings, all optional:
#   ENTRL_VENV    where the environment lives        (default: .venv in the repository)
#   ENTRL_PYTHON  the interpreter that creates it    (default: python3, then python3.13 ... python3.11)
#   ENTRL_EXTRAS  extras to install, may be empty     (default: dev)
#   ENTRL_CONSTRAINTS  the versions to install        (default: launch/constraints.txt)

entrl_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
entrl_venv="${ENTRL_VENV:-$entrl_root/.venv}"
entrl_extras="${ENTRL_EXTRAS-dev}"
entrl_constraints="${ENTRL_CONSTRAINTS:-$entrl_root/launch/constraints.txt}"

_entrl_find_python() {
    local candidate
    for candidate in ${ENTRL_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "entrl: no Python 3.11 to 3.13 among: ${ENTRL_PYTHON:-python3 python3.13 python3.12 python3.11};" \
        "install one or name it in ENTRL_PYTHON" >&2
    return 1
}

# What an installation is made from: change any of it and the next call installs again.
_entrl_fingerprint() {
    cat "$entrl_root/pyproject.toml" "$entrl_constraints" | cksum
    echo "$entrl_root"
}

_entrl_has_nvidia() {
    [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null 2>&1
}

# torch comes first and at an exact version. Asked for as a dependency, a range would take the newest build of the
# package index, which on Linux brings gigabytes of CUDA libraries; an exact version takes a CPU build where the
# index or PIP_FIND_LINKS offers one (a local version such as 2.13.0+cpu sorts above 2.13.0).
_entrl_install_torch() {
    local pin
    pin="$(grep -E '^torch==' "$entrl_constraints")"
    "$entrl_venv/bin/pip" install -qq "$pin" || return 1
}

_entrl_report_cuda() {
    local cuda
    cuda="$("$entrl_venv/bin/pip" list --format=freeze 2>/dev/null | grep -E -i '^(nvidia-|cuda-)' | cut -d= -f1 | tr '\n' ' ')"
    if [ -n "$cuda" ] && ! _entrl_has_nvidia; then
        echo "entrl: WARNING: no NVIDIA GPU here, yet pip installed CUDA packages: $cuda" >&2
        echo "entrl: WARNING: they work but take gigabytes. For a CPU build of torch name an index that has one," >&2
        echo "entrl: WARNING: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, remove $entrl_venv and run this again." >&2
    fi
}

_entrl_install() {
    local python stamp="$entrl_venv/.entrl-stamp-${entrl_extras:-plain}"  # one per set of extras: they add up
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(_entrl_fingerprint)" ]; then
        return 0
    fi
    if [ ! -x "$entrl_venv/bin/python" ]; then
        python="$(_entrl_find_python)" || return 1
        echo "entrl: creating $entrl_venv with $("$python" --version)"
        "$python" -m venv "$entrl_venv" || return 1
    fi
    echo "entrl: installing torch into $entrl_venv"
    _entrl_install_torch || return 1
    echo "entrl: installing entrl${entrl_extras:+[$entrl_extras]} and what it needs (a few minutes the first time)"
    "$entrl_venv/bin/pip" install -qq -c "$entrl_constraints" \
        -e "$entrl_root${entrl_extras:+[$entrl_extras]}" || return 1
    _entrl_report_cuda
    _entrl_fingerprint >"$stamp"
}

_entrl_install || { echo "entrl: installation failed, see the lines above" >&2; return 1 2>/dev/null || exit 1; }
PYTHON="$entrl_venv/bin/python"
export PATH="$entrl_venv/bin:$PATH"
