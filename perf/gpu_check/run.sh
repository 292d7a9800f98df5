#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run.sh WHEELS [--data DIR] [--output DIR] [--seconds N] [--checkout] [--work DIR] [PART...]
# Check and measure the GPU path on this machine. It needs an NVIDIA GPU with a driver of CUDA 12 or 13, Python 3.12,
# and the folder made by collect.sh, but no network. The results are written to DIR (perf/results here) after
# each part. The run takes at most N seconds (480), installation included. --checkout measures the sources of this
# checkout, not the wheel of ocdserve. PART: exactness, stages, networks, end-to-end, served, sanitizer; default: all.
# Exit status 0: all is exact; 1: an answer is not exact, or a part failed; 2: there is no GPU, or something is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
usage="usage: run.sh WHEELS [--data DIR] [--output DIR] [--seconds N] [--checkout] [--work DIR] [PART...]"

say() { printf 'gpu_check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

wheels="" data="" output=$root/perf/results seconds=480 checkout="" work="" parts=()
while (($#)); do
    case $1 in
        --data) data=${2:?--data needs a folder}; shift ;;
        --output) output=${2:?--output needs a folder}; shift ;;
        --seconds) seconds=${2:?--seconds needs a number}; shift ;;
        --work) work=${2:?--work needs a folder}; shift ;;
        --checkout) checkout=yes ;;
        -*) fail "unknown option $1; $usage" ;;
        *) if [[ -z $wheels ]]; then wheels=$1; else parts+=("$1"); fi ;;
    esac
    shift
done
[[ -n $wheels ]] || fail "$usage"
[[ -d $wheels/default ]] || fail "$wheels holds no folder 'default'; perf/gpu_check/collect.sh makes such a folder"
wheels=$(cd "$wheels" && pwd)
if [[ -z $data && -d $wheels/data ]]; then
    data=$wheels/data
fi

python=${PYTHON:-}
for candidate in "$python" python3 python3.12; do # python3 first: PyTorch is installed there, if at all
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
    python=""
done
[[ -n $python ]] || fail "Python 3.12 is needed, as the wheels are built for it; set PYTHON=/path/to/python3.12"

if [[ -z $work ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
else
    mkdir -p "$work"
    work=$(cd "$work" && pwd)
    rm -rf "$work/carried" "$work/venv" "$work/records" "$work/pycuda"
fi
notes=$work/notes.txt
: >"$notes"
note() { printf '%s\n' "$*" >>"$notes"; say "$*"; }

carried=$work/carried
"$here/unpack.sh" "$wheels" "$carried" || fail "the folder $wheels is not complete, see above"

"$python" -m venv --without-pip "$work/venv" || fail "$python cannot make a virtual environment, see above"
inside=$work/venv/bin/python
pip_wheel=$(find "$carried/default" -name 'pip-*.whl' | head -n 1)
[[ -n $pip_wheel ]] || fail "$wheels/default holds no pip-*.whl; call collect.sh again"
# Packages of the machine's Python must not hide those of the folder.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1
install() {
    "$inside" "$pip_wheel/pip" install --quiet --no-index --no-deps --no-cache-dir --disable-pip-version-check "$@"
}

shopt -s nullglob
install "$carried"/default/*.whl || fail "the wheels of $wheels/default cannot be installed, see above"
say "installed the default group, $SECONDS s"

pycuda_runs() { # it is linked with the driver's library; unknown without a driver
    [[ ! -e $work/pycuda.log ]] || rm "$work/pycuda.log"
    "$inside" -c 'import pycuda.driver' 2>"$work/pycuda.log" || grep -q 'libcuda.so.1: cannot open' "$work/pycuda.log"
}
needs=("$carried"/pycuda/*.whl)
if ((${#needs[@]})); then
    install "${needs[@]}" || note "the dependencies of pycuda cannot be installed"
fi
built=("$carried"/pycuda/built/pycuda-*.whl)
if ((${#built[@]})) && install "${built[0]}" && pycuda_runs; then
    say "pycuda: as it was compiled ahead, $SECONDS s"
else
    ((${#built[@]})) && note "pycuda as compiled ahead does not fit: $(tail -n 1 "$work/pycuda.log" 2>/dev/null)"
    if "$root/scripts/install_pycuda.sh" "$python" "$carried" "$work/pycuda" 2>"$work/build.log" &&
        install --force-reinstall "$work"/pycuda/pycuda-*.whl && pycuda_runs; then
        say "pycuda: compiled here, $SECONDS s"
    else
        note "pycuda cannot be compiled here: $(tail -n 3 "$work/build.log" | tr '\n' ' ')"
    fi
fi

for folder in "$carried"/*/; do
    group=$(basename "$folder")
    optional=("$folder"*.whl)
    if [[ $group != default && $group != pycuda ]] && ((${#optional[@]})); then
        if [[ $group == onnxruntime-gpu ]]; then
            "$inside" "$pip_wheel/pip" uninstall --quiet --yes --disable-pip-version-check onnxruntime
            # Wheels of NVIDIA's libraries lie in folders that no loader looks into.
            libraries=$("$python" -c 'import pathlib, sys
found = {str(file.parent) for path in sys.path for file in pathlib.Path(path).glob("nvidia/*/lib/*.so*")}
print(":".join(sorted(found)))')
            [[ -n $libraries ]] || note "onnxruntime-gpu: $python has no NVIDIA libraries; the system has to have them"
            export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        fi
        if install "${optional[@]}" 2>"$work/$group.log"; then
            say "$group: installed, $SECONDS s"
        else
            note "$group: its wheels cannot be installed: $(tail -n 2 "$work/$group.log" | tr '\n' ' ')"
        fi
    fi
done

if [[ -n $checkout ]]; then
    note "the checkout is measured, not the wheel"
    export PYTHONPATH=$root/client:$root/python_backend:$root/builder:$root/perf
fi
left=$((seconds - SECONDS))
((left > 30)) || fail "the installation took $SECONDS of $seconds s: nothing can be measured in the rest"
options=(--carried "$carried" --output "$output" --seconds "$left" --baseline-python "$python" --notes "$notes")
[[ -z $data ]] || options+=(--data "$data")
((${#parts[@]})) && options+=(--parts "${parts[@]}")
export OCDSERVE_KERNEL_CACHE=$work/kernels
status=0
"$inside" -m ocdserve.perf.gpu_check "${options[@]}" --work "$work/records" || status=$?
exit "$status"
