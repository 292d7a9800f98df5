#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compile pycuda without a CUDA toolkit or driver: the headers come from wheels, and at run time pycuda loads the driver
# that is there, or the simulated one of the tests. Needs g++ and the headers of Python.
#
# install_pycuda.sh                      Install into .venv. One to two minutes; seconds when .tools has the wheel.
# install_pycuda.sh PYTHON WHEELS OUT    Put the wheel into OUT, without a network: the sources are in WHEELS/pycuda, what
#                                        the build needs there and in WHEELS/default. PYTHON needs no pip.
set -euo pipefail
fail() { printf 'install_pycuda: %s\n' "$*" >&2; exit 1; }

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT

compile() { # PYTHON OUT PIP-WHEEL-ARGUMENT...
    # A library of that name for the linker. pycuda uses nothing of it, yet must ask for it at run time.
    printf '' | "${CXX:-g++}" -x c++ - -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/libcuda.so"
    # pycuda's setup reads this file from the home folder.
    "$1" - "$home" >"$home/.aksetup-defaults.py" <<'END'
import importlib.metadata
import sys

folders = {
    file.name: str(file.locate().parent)
    for package in ("nvidia-cuda-runtime-cu12", "nvidia-cuda-profiler-api-cu12")
    for file in importlib.metadata.files(package) or ()
}
print(f"CUDA_INC_DIR = {[folders['cuda.h'], folders['cudaProfiler.h']]!r}")
print(f"CUDADRV_LIB_DIR = {sys.argv[1:]!r}")
print("CUDART_LIB_DIR = []")
print("CUDA_ENABLE_CURAND = False")
print("CXXFLAGS = ['-O1', '-g0', '-w']")
END
    HOME=$home LDFLAGS=-Wl,--no-as-needed "$1" "${pip[@]}" wheel --no-deps --no-cache-dir --wheel-dir "$2" "${@:3}"
}

if (($# == 0)); then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    python=.venv/bin/python pip=(-m pip --quiet --disable-pip-version-check)
    wheels=.tools/pycuda-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
    "$python" -c 'import pycuda' 2>/dev/null && exit
    # cudaProfiler.h, which pycuda includes, has a wheel of its own.
    flock .venv.lock "$python" "${pip[@]}" install 'nvidia-cuda-profiler-api-cu12>=12.8,<13'
    if ! compgen -G "$wheels/pycuda-*.whl" >/dev/null; then
        compile "$python" "$wheels" --no-binary pycuda 'pycuda>=2024.1,<2028'
    fi
    flock .venv.lock "$python" "${pip[@]}" install "$wheels"/pycuda-*.whl
    exit
fi

(($# == 3)) || fail "usage: install_pycuda.sh [PYTHON WHEELS OUT]"
python=$1 wheels=$(cd "$2" && pwd) out=$3
source=$(find "$wheels/pycuda" -maxdepth 1 -name 'pycuda-*.tar.gz' | head -n 1)
[[ -n $source ]] || fail "there is no pycuda-*.tar.gz in $wheels/pycuda"
command -v "${CXX:-g++}" >/dev/null || fail "there is no ${CXX:-g++}, which compiles pycuda"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' ||
    fail "$python has no Python.h: install the headers of Python (Debian, Ubuntu: apt install python3-dev)"
installer=$(find "$wheels/default" -maxdepth 1 -name 'pip-*.whl' | head -n 1)
[[ -n $installer ]] || fail "there is no pip-*.whl in $wheels/default"
"$python" -m venv --without-pip "$home/venv"
python=$home/venv/bin/python pip=("$installer/pip" --quiet --disable-pip-version-check)
"$python" "${pip[@]}" install --no-index --no-deps --no-cache-dir \
    "$wheels"/pycuda/*.whl "$wheels"/default/{numpy,nvidia_cuda_runtime_cu12}-*.whl
compile "$python" "$out" --no-index --no-build-isolation "$source"
