#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: build.sh PYTHON FOLDER. Put the simulated driver, libcuda.so.1, into FOLDER, with the CUDA headers of PYTHON's
# nvidia-cuda-runtime-cu12.
set -euo pipefail
python=$1 folder=$2
headers=$("$python" -c "from ocdserve.backend.kernels.gpu.nvrtc import toolkit_headers; print(toolkit_headers()[0])")
"${CXX:-g++}" -std=c++20 -O1 -shared -fPIC -fvisibility=hidden -Wall -Wextra -Wno-deprecated-declarations \
    -isystem "$headers" -Wl,-soname,libcuda.so.1 "$(dirname "${BASH_SOURCE[0]}")"/*.cpp -o "$folder/libcuda.so.1"
ln -sf libcuda.so.1 "$folder/libcuda.so" # the name that linkers look for
