#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: lock.sh [--upgrade]. Write requirements.lock for the extras (but train and modelopt) and groups of
# pyproject.toml; versions change only where that is necessary, or to the newest with --upgrade. Then install them and
# write THIRD_PARTY.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(PATH=$PWD/.venv/bin:$PWD/.tools/bin:$PATH command -v uv) || { echo "lock.sh: needs uv" >&2; exit 1; }
python=.venv/bin/python
draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
cp requirements.lock "$draft"
extras=$(sed -n '/^\[project.optional-dependencies\]/,/^\[/s/^\([a-z0-9-]*\) = .*/--extra \1/p' pyproject.toml |
    grep -v -e ' train$' -e ' modelopt$')
# Without the index's address: a mirror has the same files. Of perf-analyzer the newest needs a newer glibc than Debian
# 12 has, which a resolution for all machines does not see.
# shellcheck disable=SC2086 # $extras is a list
"$uv" pip compile --quiet "$@" pyproject.toml $extras --group tools --group gpu-image --universal \
    --python-version 3.10 --generate-hashes --no-emit-index-url --no-emit-package perf-analyzer --no-header \
    --no-annotate --output-file "$draft"
{
    echo "# SPDX-License-Identifier: Apache-2.0"
    echo "# Made by \`make lock\`: the version and the hashes of every package that pyproject.toml leads to."
    cat "$draft"
} >requirements.lock
extras=$($python scripts/third_party.py --extras)
"$uv" venv --quiet --clear --python $python out/lock
"$uv" pip install --quiet --constraints requirements.lock --python out/lock/bin/python ".[$extras]"
out/lock/bin/python scripts/third_party.py >out/THIRD_PARTY.md
mv out/THIRD_PARTY.md .
