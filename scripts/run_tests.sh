#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run_tests.sh MARKERS [ARGUMENT OF PYTEST]... Run the tests that MARKERS selects (an expression of pytest, "" for
# all) in two phases: first all that bear others beside them, in as many processes as there are cores
# (PYTEST_XDIST_AUTO_NUM_WORKERS names another number); then, one by one, those that start the real server.
# Both run in any case; it fails if one of them does.
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

phase "tests side by side" "not triton" "${processes[@]}" "$@"
phase "tests of the real server, one by one" triton "$@"
[[ $any ]] || exit 5
exit "$failed"
