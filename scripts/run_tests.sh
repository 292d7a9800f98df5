#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run_tests.sh MARKERS [PYTEST ARGUMENT]... Run the tests that MARKERS selects (a marker expression of pytest, ""
# for all) in two phases: in parallel, in as many processes as there are cores (or PYTEST_XDIST_AUTO_NUM_WORKERS), all
# tests but those of the real server; then those, one by one. Both phases always run; the script fails if one does.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
selected=${1:+($1) and }
shift
# Each process takes up to 2 GB.
processes=(--numprocesses logical --maxprocesses 8 --dist worksteal)
failed=0
any=

phase() { # title, markers, arguments of pytest
    printf '\nocdserve: %s\n' "$1"
    .venv/bin/python -m pytest -rfEs -m "$selected$2" "${@:3}"
    local status=$?
    case $status in
    0) any=yes ;;
    2) exit 2 ;; # interrupted by Ctrl-C, or a file that cannot be imported
    5) ;; # no test was selected
    *) any=yes failed=$status ;;
    esac
}

phase "tests in parallel" "not triton" "${processes[@]}" "$@"
phase "tests of the real server, one by one" triton "$@"
[[ $any ]] || exit 5
exit "$failed"
