#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: collect.sh WHEELS [--data DIR] [--with GROUP]... [--part-size MIB]
# On a machine with a network: put into the folder WHEELS everything that run.sh needs on one without, for Python 3.12
# on x86-64 Linux. --data DIR adds photographs (img/, or folders that have one), the network's maps of them, and
# networks in FP16 and INT8 calibrated on them. GROUP: tensorrt, tensorrt-rtx, onnxruntime-gpu, triton, jpeg.
# Files of more than MIB (60) mebibytes are split into NAME.part-aa, NAME.part-ab, ...; run.sh joins them.
# Further calls add to the folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { printf 'collect: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

wheels="" data="" groups=() part_mib=60
while (($#)); do
    case $1 in
        --data) data=${2:?--data needs a folder}; shift ;;
        --with) groups+=("${2:?--with needs a group}"); shift ;;
        --part-size) part_mib=${2:?--part-size needs a number}; shift ;;
        -*) fail "unknown option $1; usage: collect.sh WHEELS [--data DIR] [--with GROUP]... [--part-size MIB]" ;;
        *) [[ -z $wheels ]] || fail "one folder only; got $wheels and $1"; wheels=$1 ;;
    esac
    shift
done
[[ -n $wheels ]] || fail "usage: collect.sh WHEELS [--data DIR] [--with GROUP]... [--part-size MIB]"
[[ -z $data || -d $data ]] || fail "--data $data: there is no such folder"
for group in "${groups[@]}"; do
    [[ -f $here/requirements/$group.txt ]] || fail "--with $group: there is no requirements/$group.txt"
done
mkdir -p "$wheels"
wheels=$(cd "$wheels" && pwd)
[[ -z $data ]] || data=$(cd "$data" && pwd)

"$root/scripts/make_venv.sh" server,builder,tensorrt-rtx
python=$root/.venv/bin/python
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

# pip does not extend a manylinux tag to older ones.
platforms=()
for number in 2_39 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${number}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

download() { # GROUP
    say "wheels of the group $1"
    mkdir -p "$wheels/$1"
    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
        --dest "$wheels/$1" --requirement "$here/requirements/$1.txt" || return 1
    if [[ -f $here/requirements/$1-source.txt ]]; then
        pip wheel --no-deps --wheel-dir "$wheels/$1" --requirement "$here/requirements/$1-source.txt"
    fi
}

find_python() { # a Python 3.12 with headers, to compile pycuda
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

download default
rm -f "$wheels"/default/ocdserve-*.whl
pip wheel --no-deps --wheel-dir "$wheels/default" "$root"

download pycuda
if ! compgen -G "$wheels/pycuda/pycuda-*.tar.gz" >/dev/null; then
    pip download --no-deps --no-binary pycuda --dest "$wheels/pycuda" 'pycuda>=2024.1,<2028'
fi
if ! compgen -G "$wheels/pycuda/built/pycuda-*.whl" >/dev/null; then
    if compiler=$(find_python); then
        say "compiling pycuda ahead with $compiler; where the result does not fit, run.sh compiles it again"
        "$root/scripts/install_pycuda.sh" "$compiler" "$wheels" "$wheels/pycuda/built" ||
            say "pycuda could not be compiled ahead; run.sh will do it"
    else
        say "no Python 3.12 with headers here: pycuda is not compiled ahead, run.sh will do it"
    fi
fi

for group in "${groups[@]}"; do
    download "$group" || say "the group $group cannot be collected, see above; the check will run without it"
done

if [[ -n $data ]]; then
    say "maps and networks from $data; this takes minutes"
    "$python" -m ocdserve.perf.gpu_check.prebuild "$wheels" --data "$data"
fi

find "$wheels" -type f -size +"$((part_mib * 1024))"k | while read -r file; do
    rm -f "$file".part-*
    sha256sum <"$file" >"$file.sha256"
    split --bytes="${part_mib}M" --suffix-length=2 "$file" "$file.part-"
    rm "$file"
done
find "$wheels" -type f -size +1023k -printf '%k KiB  %P\n' | sort -rn
say "$(du -sm "$wheels" | cut -f 1) MiB in $wheels; next, on the GPU machine: perf/gpu_check/run.sh WHEELS"
