#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Put pycuda into .venv on a machine without a CUDA toolkit or driver, for tests on the simulated driver.
# Headers come from wheels; it is linked with the simulated libcuda, and takes at run time whichever there is. It takes
# one to two minutes, and seconds when .tools has the wheel from before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
wheels=.tools/pycuda-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

"$python" -c 'import pycuda' 2>/dev/null && exit
# cudaProfiler.h, which pycuda includes, has a wheel of its own.
pip install 'nvidia-cuda-profiler-api-cu12>=12.8,<13'
if ! compgen -G "$wheels/pycuda-*.whl" >/dev/null; then
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    tests/fakes/libcuda/build.sh "$python" "$home"
    "$python" - "$home" >"$home/.aksetup-defaults.py" <<'END' # pycuda's setup reads it from the home folder
import importlib.metadata
import sys

files = {
    file.name: str(file.locate().parent)
    for package in ("nvidia-cuda-runtime-cu12", "nvidia-cuda-profiler-api-cu12")
    for file in importlib.metadata.files(package) or ()
}
print(f"CUDA_INC_DIR = {[files['cuda.h'], files['cudaProfiler.h']]!r}")
print(f"CUDADRV_LIB_DIR = {sys.argv[1:]!r}")
print("CUDART_LIB_DIR = []")
print("CUDA_ENABLE_CURAND = False")
print("CXXFLAGS = ['-O0', '-g0', '-w']")
END
    HOME=$home "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-cache-dir --no-binary pycuda \
        --wheel-dir "$wheels" 'pycuda>=2024.1,<2028'
fi
pip install "$wheels"/pycuda-*.whl
