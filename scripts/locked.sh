#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: locked.sh [NAME...]. Print the entries of requirements.lock for these packages, with hashes; without names, all
# versions without hashes, as constraints for pip, which refuses an editable package next to hashes.
set -euo pipefail
lock=$(dirname "${BASH_SOURCE[0]}")/../requirements.lock
if (($#)); then
    awk -v names=" $* " '/^[a-z0-9]/ { split($0, part, "=="); wanted = index(names, " " part[1] " ") } wanted' "$lock"
else
    sed '/^ /d; s/ *\\$//' "$lock"
fi
