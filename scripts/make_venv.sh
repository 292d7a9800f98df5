#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: make_venv.sh EXTRA[,EXTRA...]. Ensure that .venv holds ocdserve (editable) with these extras.
# Takes milliseconds if it already does; concurrent calls wait for each other. Versions and hashes are those of
# requirements.lock, or with UNLOCKED=1 the newest that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$1

say() { printf 'ocdserve: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The stamp records the source of the installation (an editable one is bound to its folder), its extras, and the C++
# sources that were compiled.
stamp=.venv/.ocdserve
source="$PWD $(cksum <pyproject.toml) ${UNLOCKED:-$(cksum <requirements.lock)}"
backend=python_backend/ocdserve/backend
code=$(cat "$backend"/kernels/cpu/*.{cpp,h,py} "$backend"/kernels/shared/*.cuh | cksum)

in_range() {
    .venv/bin/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

installed() { # the extras named by the stamp
    { [[ -f $stamp ]] && sed -n 2p "$stamp"; } || true
}

compiled() { # whether compilation of these sources was attempted
    [[ -f $stamp && $(sed -n 3p "$stamp") == "$code" ]]
}

up_to_date() {
    [[ -f $stamp && $(sed -n 1p "$stamp") == "$source" ]] || return 1
    local extra
    for extra in ${wanted//,/ }; do
        [[ ,$(installed), == *,$extra,* ]] || return 1
    done
    in_range
}

check_system() {
    [[ $(uname -s) == Linux ]] ||
        fail "NVIDIA Triton runs on Linux only: run make on Linux, in a container or in WSL 2."
    local glibc
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{print $2}') || true
    [[ -n $glibc && $(printf '%s\n' 2.35 "$glibc" | sort -V | head -n 1) == 2.35 ]] ||
        fail "NVIDIA Triton's wheel needs glibc 2.35 or newer (got ${glibc:-another C library}): use Ubuntu 22.04, Debian 12 or a newer system."
}

make_venv() {
    if [[ -e .venv ]] && { [[ $(installed) == half-made ]] || ! in_range; }; then
        [[ -f $stamp ]] ||
            fail "the .venv in this folder has no Python 3.10 to 3.12 and was not created by make: remove it and run make again."
        rm -rf .venv
    fi
    if [[ ! -e .venv ]]; then
        local python
        python=$(scripts/find_python.sh)
        say "creating .venv with $("$python" --version) ($python)"
        mkdir .venv
        printf '%s\nhalf-made\n' "$source" >"$stamp" # left by an interrupted run; the next one starts afresh
        "$python" -m venv .venv || fail "$python could not create .venv, see above."
        : >"$stamp"
    fi
}

find_uv() {
    local candidate
    while read -r candidate; do
        if "$candidate" --version >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done < <(printf '%s\n' .venv/bin/uv .tools/bin/uv; type -ap uv)
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r <(scripts/locked.sh uv) >/dev/null 2>&1 &&
        printf '%s\n' .venv/bin/uv
}

# uv checks hashes, and is several times faster; if it fails for another reason, pip is tried, because only pip obeys
# pip's own configuration.
install() {
    local package=".[$1]" uv quiet=(--quiet) index locked=() pinned=() lock=requirements.lock free
    if [[ -z ${UNLOCKED:-} ]]; then
        # Without the packages that an extra holds to other versions: PyTorch pins its CUDA, ModelOpt ONNX and its runtime.
        case ,$1, in
        *,modelopt,*) free='^(nvidia-(cu|nv)|cuda-|onnx(runtime(-gpu)?)?==)' ;;
        *,train,*) free='^(nvidia-(cu|nv)|cuda-)' ;;
        esac
        if [[ -n ${free:-} ]]; then
            lock=.venv/requirements.lock
            awk -v free="$free" '/^[a-z0-9]/ { is_free = $0 ~ free } !is_free' requirements.lock >"$lock"
        fi
        locked=(--constraints "$lock" --build-constraints requirements.lock)
        scripts/locked.sh | grep -Ev "${free:-^$}" >.venv/pins.txt
        pinned=(--constraint .venv/pins.txt)
    fi
    [[ -t 2 ]] && quiet=()
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    if [[ -n $index && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
        export UV_DEFAULT_INDEX=$index
    fi
    if uv=$(find_uv); then
        uv=("$uv" pip install "${quiet[@]}" "${locked[@]}" --python .venv/bin/python --editable "$package")
        "${uv[@]}" && return
        ! grep -qi 'hash mismatch' <("${uv[@]}" 2>&1) ||
            fail "a package is not the one that requirements.lock names, see above; use another index, or \`make lock\` if you trust this one."
        say "uv could not install $package, trying pip${locked:+, which does not check hashes}"
    fi
    .venv/bin/python -m pip install "${quiet[@]}" "${pinned[@]}" --disable-pip-version-check --editable "$package" ||
        fail "pip could not install $package, see above; fix that and run make again${locked:+, or UNLOCKED=1 make ... for other versions than those of requirements.lock}."
}

check_extras() {
    local extra known
    known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z-]*\) = .*/\1/p' pyproject.toml | paste -sd ' ')
    [[ -n $wanted ]] || fail "name an extra: make extra NAME=tables; there are $known"
    for extra in ${wanted//,/ }; do
        [[ " $known " == *" $extra "* ]] || fail "there is no extra $extra; there are $known"
    done
}

check_extras
up_to_date && compiled && exit
check_system
exec 9>.venv.lock
if command -v flock >/dev/null; then
    flock 9
fi
if ! up_to_date; then
    make_venv
    extras=$(printf '%s,%s' "$wanted" "$(installed)" | tr ',' '\n' | sort -u | sed '/^$/d' | paste -sd ,)
    say "installing ocdserve[$extras] into .venv; the first time takes a minute or two"
    started=$SECONDS
    install "$extras"
    printf '%s\n%s\n' "$source" "$extras" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "installed in $((SECONDS - started)) s"
fi
if ! compiled; then
    .venv/bin/python -m ocdserve.backend.kernels.cpu || true # reports what is missing; without it everything works, more slowly
    printf '%s\n%s\n%s\n' "$(sed -n 1p "$stamp")" "$(installed)" "$code" >"$stamp.new"
    mv "$stamp.new" "$stamp"
fi
