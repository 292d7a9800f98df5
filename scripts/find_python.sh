#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Print the path of a Python that can run the server: CPython 3.10 to 3.12 with `venv` and a shared libpython, because
# tritonserver's Python backend embeds it. Tries $PYTHON, the PATH and pyenv, then has uv find or download one.
# If there is none, exits with status 1 and one sentence on stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Prints the interpreter's real path, not that of a pyenv shim. Status 4: no venv, 5: no shared libpython.
probe='
import os, sys, sysconfig
if sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(3)
try:
    import ensurepip, venv
except ImportError:
    print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], sys.executable))
    sys.exit(4)
library = "libpython%d.%d.so.1.0" % sys.version_info[:2]
folders = (sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib"))
if not any(os.path.exists(os.path.join(folder, library)) for folder in folders):
    import ctypes
    try:
        ctypes.CDLL(library)
    except OSError:
        print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], sys.executable))
        sys.exit(5)
print(sys.executable)
'

say() { printf 'ocdserve: %s\n' "$*" >&2; }

advice="" # what the best unsuitable interpreter lacks

# Prints the interpreter and exits if $1 can run the server; otherwise records what it lacks.
try() {
    local found status=0 version path
    found=$("$1" -c "$probe" 2>/dev/null </dev/null) || status=$?
    if [[ $status == 0 && -n $found ]]; then
        printf '%s\n' "$found"
        exit 0
    fi
    if [[ -z $advice && ( $status == 4 || $status == 5 ) ]]; then
        read -r version path <<<"$found"
        if [[ $status == 4 ]]; then
            advice="$path lacks Python's venv: install it (Debian, Ubuntu: apt install python$version-venv)"
        else
            advice="$path lacks the shared library libpython$version.so.1.0 that the server embeds: install it (Debian, Ubuntu: apt install libpython$version)"
        fi
    fi
    return 1
}

# The first uv that runs (a pyenv shim may not), else one installed into .tools with any available Python 3.
find_uv() {
    local candidate
    while read -r candidate; do
        if "$candidate" --version >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done < <(type -ap uv; printf '%s\n' .tools/bin/uv)
    while read -r candidate; do
        if "$candidate" -m venv .tools >/dev/null 2>&1 && .tools/bin/python -m pip install --quiet -r <(scripts/locked.sh uv | sed 's/ ;.*/ \\/') >/dev/null 2>&1; then
            printf '%s\n' .tools/bin/uv
            return
        fi
    done < <(type -ap python3)
    return 1
}

if [[ -n ${PYTHON:-} ]] && ! try "$PYTHON"; then
    say "PYTHON=$PYTHON cannot run the server, looking for another Python"
fi
for name in python3 python3.12 python3.11 python3.10; do
    while read -r candidate; do
        try "$candidate" || true
    done < <(type -ap "$name")
done
while read -r candidate; do
    try "$candidate" || true
done < <(printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[0-2].*/bin/python3 .tools/python/*/bin/python3 | sort -rV)

if uv=$(find_uv); then
    managed=(python find --python-preference only-managed --no-python-downloads)
    for version in 3.12 3.11 3.10; do
        if candidate=$("$uv" "${managed[@]}" "$version" 2>/dev/null); then
            try "$candidate" || true
        fi
    done
    say "no suitable Python on this machine, downloading Python 3.12 with uv into .tools"
    export UV_PYTHON_INSTALL_DIR="$PWD/.tools/python" UV_PYTHON_INSTALL_BIN=0
    if "$uv" python install --quiet 3.12 >/dev/null 2>&1 && candidate=$("$uv" "${managed[@]}" 3.12 2>/dev/null); then
        try "$candidate" || true
    fi
fi

if [[ -z $advice ]]; then
    advice="the server needs Python 3.10, 3.11 or 3.12, which was not found and could not be downloaded: install one with its venv and shared library (Debian, Ubuntu: apt install python3.12-venv libpython3.12)"
fi
say "$advice, or set PYTHON=/path/to/python, and run make again."
exit 1
