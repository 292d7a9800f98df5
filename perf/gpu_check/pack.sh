#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: pack.sh [DIR] --data DIR [--with GROUP]...
# On a machine with a network: write folders DIR/1, DIR/2, ... (.gpu-check here) of at most 48 MiB with what run.sh needs
# on an offline GPU host with Python 3.12 on x86-64 Linux, and print the plan. --data DIR: photographs (img/, or folders
# that have one). GROUP: host (NumPy, OpenCV and others, for a Python without them), onnxruntime-gpu, tensorrt,
# tensorrt-rtx (with engines for it), jpeg. What was collected before is kept in DIR/collected.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
usage="usage: pack.sh [DIR] --data DIR [--with GROUP]..."

say() { printf 'pack: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

target="" data="" groups=(base triton)
while (($#)); do
    case $1 in
        --data) data=${2:?--data needs a folder}; shift ;;
        --with) groups+=("${2:?--with needs a group}"); shift ;;
        -*) fail "unknown option $1; $usage" ;;
        *) [[ -z $target ]] || fail "one folder only; got $target and $1"; target=$1 ;;
    esac
    shift
done
[[ -n $data ]] || fail "$usage"
[[ -d $data ]] || fail "--data $data: there is no such folder"
for group in "${groups[@]}"; do
    [[ -f $here/requirements/$group.txt ]] || fail "--with $group: there is no requirements/$group.txt"
done
data=$(cd "$data" && pwd)
mkdir -p "${target:=$root/.gpu-check}/collected"
target=$(cd "$target" && pwd)
collected=$target/collected

extras=server,builder,dev
[[ " ${groups[*]} " != *" tensorrt-rtx "* ]] || extras+=,tensorrt-rtx
"$root/scripts/make_venv.sh" "$extras"
python=$root/.venv/bin/python
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

# pip does not extend a manylinux tag to older ones.
platforms=()
for number in 2_39 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${number}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

download() { # DIR REQUIREMENT...
    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$@"
}

find_python() { # a Python 3.12 with headers
    local candidate
    for candidate in "${PYTHON:-python3.12}" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3; do
        if "$candidate" -c 'import pathlib, sys, sysconfig
sys.exit(sys.version_info[:2] != (3, 12) or not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())
' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

for group in "${groups[@]}"; do
    [[ ! -d $collected/$group/wheels ]] || continue
    say "wheels of the group $group"
    mkdir -p "$collected/$group"
    # Renamed when it is complete: another call begins again with what is not.
    downloaded=$(mktemp -d "$target/downloaded.XXXX")
    if download "$downloaded" --requirement "$here/requirements/$group.txt" &&
        { [[ ! -f $here/requirements/$group-source.txt ]] ||
            pip wheel --no-deps --wheel-dir "$downloaded" --requirement "$here/requirements/$group-source.txt"; }; then
        mv "$downloaded" "$collected/$group/wheels"
    else
        rm -rf "$downloaded" "${collected:?}/$group"
        [[ $group != base && $group != triton ]] || fail "the group $group cannot be collected, see above"
        say "the group $group cannot be collected, see above; the check will run without it"
    fi
done

if ! compgen -G "$collected/base/wheels/pycuda-*.whl" >/dev/null; then
    say "pycuda, compiled for Python 3.12"
    compiler=$(find_python) || fail "pycuda is compiled by a Python 3.12 with headers; set PYTHON=/path/to/python3.12"
    sources=$(mktemp -d)
    trap 'rm -rf "$sources"' EXIT
    download "$sources/pycuda" --requirement "$here/requirements/pycuda.txt"
    pip download --no-deps --no-binary pycuda --dest "$sources/pycuda" 'pycuda>=2024.1,<2028'
    # What is compiled with NumPy 2 works with NumPy 1 too.
    download "$sources/default" pip 'numpy>=2,<3' 'nvidia-cuda-runtime-cu12>=12.8,<13'
    "$root/scripts/install_pycuda.sh" "$compiler" "$sources" "$collected/base/wheels"
fi

# What the checkout does not hold: the compiled post-processing of the CPU, and the kernels.
rm -rf "$collected/base/built"
mkdir -p "$collected/base/built/cpu" "$collected/base/built/gpu"
"$python" -m ocdserve.backend.kernels.gpu "$collected/base/built/gpu"
cp "$root"/python_backend/ocdserve/backend/kernels/cpu/postprocess.so "$collected/base/built/cpu/"

# Without a group that could execute the others, only what a machine's own ONNX Runtime may.
networks=(--precisions fp16)
[[ ! " ${groups[*]} " =~ " "(onnxruntime-gpu|tensorrt|tensorrt-rtx)" " ]] || networks=(--precisions fp32 fp16 int8)
[[ " ${groups[*]} " != *" tensorrt-rtx "* ]] || networks+=(--engines)
"$python" -m ocdserve.perf.gpu_check.prebuild "$collected/base" --data "$data" "${networks[@]}"

"$python" -m ocdserve.perf.gpu_check.folders pack "$collected" "$target"
say "next, on the GPU host, one folder after the other: perf/gpu_check/run.sh $target/1"
