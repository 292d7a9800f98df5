#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: build_pycuda.sh PYTHON WHEELS OUT. Compile pycuda from its source in WHEELS/pycuda with PYTHON, and put its
# wheel into OUT. Build needs come from WHEELS/pycuda and WHEELS/default, no index is asked; so do CUDA's headers. Neither
# a CUDA toolkit nor a driver is needed, but g++ and Python's own headers are. PYTHON needs no pip.
set -euo pipefail
python=$1 wheels=$(cd "$2" && pwd) out=$3
mkdir -p "$out"
out=$(cd "$out" && pwd)

fail() { printf 'build_pycuda: %s\n' "$*" >&2; exit 1; }

source=$(find "$wheels/pycuda" -maxdepth 1 -name 'pycuda-*.tar.gz' | head -n 1)
[[ -n $source ]] || fail "there is no pycuda-*.tar.gz in $wheels/pycuda"
command -v "${CXX:-g++}" >/dev/null || fail "there is no ${CXX:-g++}, which compiles pycuda"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' ||
    fail "$python has no Python.h: install the headers of Python (Debian, Ubuntu: apt install python3-dev)"

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"$python" -m venv --without-pip "$home/venv"
pip=$(find "$wheels/default" -maxdepth 1 -name 'pip-*.whl' | head -n 1)
[[ -n $pip ]] || fail "there is no pip-*.whl in $wheels/default"
"$home/venv/bin/python" "$pip/pip" install --quiet --no-index --no-deps --no-cache-dir --disable-pip-version-check \
    "$wheels"/pycuda/*.whl "$wheels"/default/{numpy,nvidia_cuda_runtime_cu12}-*.whl

# A library of that name for the linker: the driver's own takes its place wherever pycuda runs.
printf '' | "${CXX:-g++}" -x c++ - -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/libcuda.so"
"$home/venv/bin/python" - "$home" >"$home/.aksetup-defaults.py" <<'END' # pycuda's setup reads it from the home folder
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
# Nothing of that library is used, yet pycuda must ask for it.
HOME=$home LDFLAGS=-Wl,--no-as-needed "$home/venv/bin/python" "$pip/pip" wheel --quiet --no-index --no-deps \
    --no-cache-dir --no-build-isolation --disable-pip-version-check --wheel-dir "$out" "$source"
