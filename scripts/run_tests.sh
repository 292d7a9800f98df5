#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run_tests.sh MARKERS [PYTEST OPTION]... Run the tests that MARKERS selects (a marker expression of pytest, ""
# for all) in two parts at once: those of the real server, one by one; and all others, in as many processes as there are
# cores (or PYTEST_XDIST_AUTO_NUM_WORKERS). The server's mostly wait, for a start or an end. The others use that time, at
# a lower priority. A third part follows: those of the server that fail if something takes too long, which would depend
# on what runs beside them. The script fails if one part does.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Hundreds of processes import the same packages: without caches, most of their time goes into compiling them again.
unset PYTHONDONTWRITEBYTECODE
selected=${1:+($1) and }
shift
# Each process takes up to 2 GB.
processes=(--numprocesses logical --maxprocesses 8 --dist worksteal)
# Importing all others to find these takes a quarter of a minute.
mapfile -t of_server < <(grep --recursive --files-with-matches --include='test_*.py' 'mark\.triton' tests)
log=out/tests-of-the-server.log
mkdir -p out

part() { # name, niceness, markers, arguments of pytest
    # bash lets jobs in the background ignore Ctrl-C. `make coverage` joins the data of all.
    COVERAGE_FILE=out/coverage/data.$1 exec env --default-signal=INT nice -n "$2" \
        .venv/bin/python -m pytest -rfEs -m "$selected$3" "${@:4}"
}

# Ctrl-C reaches all; what is sent to this script alone is passed on.
stop() {
    trap '' INT TERM HUP
    # shellcheck disable=SC2046
    [[ $1 ]] && kill -INT $(jobs -p) 2>/dev/null
    wait
    exit 2
}

# pytest's for: no test was selected.
status=5
ended() { # process
    wait "$1"
    local code=$?
    ((code == 5 || (code == 0 && status != 5))) || status=$code
}

printf '\nocdserve: tests in parallel; those of the real server beside them, shown at the end (now: %s)\n' "$log"
part server 0 "triton and not timed" "$@" "${of_server[@]}" >"$log" 2>&1 &
server=$!
part others 5 "not triton" "${processes[@]}" "$@" &
others=$!
trap 'stop ""' INT
trap 'stop all' TERM HUP
ended "$others"
printf '\nocdserve: tests of the real server, which ran beside them one by one\n'
tail --lines=+1 --follow --pid="$server" "$log" &
ended "$server"
wait
printf '\nocdserve: tests of the real server that depend on time, alone\n'
part timed 0 "triton and timed" "$@" "${of_server[@]}" &
ended $!
exit "$status"
