#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run.sh [--dry-run] [--output DIR] [--seconds N] [--work DIR] [FOLDER...] [PART...]
# Check and measure the GPU path of this checkout on this machine, which needs an NVIDIA GPU with its driver and Python
# 3.12, but no network. FOLDER: those that pack.sh made, in one call or in several: what a call brings is kept in the
# work folder (.gpu-check/work here), and the next call continues after the last part that was completed. PART: facts,
# exactness, stages, end-to-end, networks, reading, served, sanitizer; default: all but the last, as far as their folders are
# there. The results are in DIR (perf/results here) after each part; a call takes at most N seconds (360).
# --dry-run prints the plan. PYTHON names another Python than python3 or python3.12.
# Exit status 0: all is exact; 1: an answer is not exact, or a part failed; 2: there is no GPU, or something is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
usage="usage: run.sh [--dry-run] [--output DIR] [--seconds N] [--work DIR] [FOLDER...] [PART...]"

say() { printf 'gpu_check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

output=$root/perf/results seconds=360 work=$root/.gpu-check/work dry="" folders=() parts=()
while (($#)); do
    case $1 in
        --dry-run) dry=yes ;;
        --output) output=${2:?--output needs a folder}; shift ;;
        --seconds) seconds=${2:?--seconds needs a number}; shift ;;
        --work) work=${2:?--work needs a folder}; shift ;;
        -*) fail "unknown option $1; $usage" ;;
        *) if [[ -d $1 || $1 == */* ]]; then folders+=("$1"); else parts+=("$1"); fi ;;
    esac
    shift
done

python=${PYTHON:-}
for candidate in "$python" python3 python3.12; do # python3 first: PyTorch is installed there, if at all
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
    python=""
done
[[ -n $python ]] || fail "Python 3.12 is needed, as the wheels are built for it; set PYTHON=/path/to/python3.12"

# The packages that are found now must be those that the parts find.
export PYTHONNOUSERSITE=1
sources=$root/client:$root/python_backend:$root/builder:$root/perf
of_folders() { PYTHONPATH=$root/perf "$python" -m ocdserve.perf.gpu_check.folders "$@"; }
if [[ -n $dry ]]; then
    of_folders plan "${folders[@]}"
    exit
fi
lacking=$(of_folders join "$work" "${folders[@]}") || exit 2
work=$(cd "$work" && pwd)
carried=$work/carried
say "unpacked, $SECONDS s"

notes=$work/notes.txt
: >"$notes"
note() { printf '%s\n' "$*" >>"$notes"; say "$*"; }

shopt -s nullglob
# A Python may have no pip of its own.
pip=("$carried"/base/wheels/pip-*.whl)
install() { # TARGET WHEEL...: what was not installed before
    local target=$1 wheels=() wheel
    shift
    mkdir -p "$target"
    for wheel in "$@"; do
        [[ -e $target/.${wheel##*/} ]] || wheels+=("$wheel")
    done
    ((${#wheels[@]})) || return 0
    "$python" "${pip[0]}/pip" install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --disable-pip-version-check --target "$target" "${wheels[@]}" || return 1
    for wheel in "${wheels[@]}"; do
        : >"$target/.${wheel##*/}"
    done
}
lacks_package() { # WHEEL: whether the machine's Python has not got it
    local name=${1##*/}
    ! PYTHONPATH='' "$python" -c 'import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])' \
        "${name%%-*}" 2>/dev/null
}

groups=()
while read -r group missing; do
    if [[ -n $missing ]]; then
        note "the group $group is not complete: folder $missing has not come yet"
        continue
    fi
    groups+=("$group")
    wheels=()
    for wheel in "$carried/$group"/wheels/*.whl; do
        case $group in
            triton) wheels+=("$wheel") ;;
            *) if [[ $wheel == */pip-* ]]; then continue; fi
               if [[ -e $work/site/.${wheel##*/} ]] || lacks_package "$wheel"; then wheels+=("$wheel"); fi ;;
        esac
    done
    site=$work/site
    [[ $group != triton ]] || site=$work/site-of-triton
    if install "$site" "${wheels[@]}" 2>"$work/$group.log"; then
        say "$group: ${#wheels[@]} packages of the folders, others are the machine's, $SECONDS s"
    else
        note "$group: its wheels cannot be installed: $(tail -n 2 "$work/$group.log" | tr '\n' ' ')"
    fi
done <<<"$lacking"
[[ " ${groups[*]} " == *" base "* ]] || fail "nothing can run before the group base is complete"

if [[ " ${groups[*]} " == *" onnxruntime-gpu "* ]]; then
    # Wheels of NVIDIA's libraries lie in folders that no loader looks into.
    libraries=$("$python" -c 'import pathlib, sys
found = {str(file.parent) for path in sys.path for file in pathlib.Path(path).glob("nvidia/*/lib/*.so*")}
print(":".join(sorted(found)))')
    [[ -n $libraries ]] || note "onnxruntime-gpu: $python has no NVIDIA libraries; the system has to have them"
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

kernels=$root/python_backend/ocdserve/backend/kernels
mkdir -p "$kernels/gpu/cubins"
cp "$carried"/base/built/gpu/* "$kernels/gpu/cubins/"
cp "$carried"/base/built/cpu/* "$kernels/cpu/"

left=$((seconds - SECONDS))
((left > 30)) || fail "the installation took $SECONDS of $seconds s: nothing can be measured in the rest"
options=(--carried "$carried/base" --output "$output" --seconds "$left" --notes "$notes" --work "$work/records")
options+=(--groups "${groups[@]}")
[[ ! -d $work/site-of-triton ]] || options+=(--triton-site "$work/site-of-triton")
((${#parts[@]})) && options+=(--parts "${parts[@]}")
export PYTHONPATH=$sources:$work/site PYTHONUNBUFFERED=1 OCDSERVE_KERNEL_CACHE=$work/kernels
status=0
"$python" -m ocdserve.perf.gpu_check "${options[@]}" || status=$?
exit "$status"
