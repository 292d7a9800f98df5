#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: unpack.sh FROM TO. Make a folder TO with links to all files of FROM; join those that collect.sh has split
# (NAME.part-aa, NAME.part-ab, ...), and verify their checksums (NAME.sha256).
set -euo pipefail
from=$(cd "$1" && pwd) to=$2

mkdir "$to"
to=$(cd "$to" && pwd)
cd "$from"
find . -type d -exec mkdir -p "$to/{}" \;
find . -type f ! -name '*.part-*' ! -name '*.sha256' -exec ln -s "$from/{}" "$to/{}" \;
find . -type f -name '*.sha256' | while read -r sum; do
    name=${sum%.sha256}
    cat "$name".part-* >"$to/$name"
    if [[ $(sha256sum <"$to/$name") != "$(cat "$sum")" ]]; then
        printf 'unpack: %s is not what was cut: a part is missing or damaged; there are %s\n' \
            "${name#./}" "$(cd "$(dirname "$name")" && echo "$(basename "$name")".part-*)" >&2
        exit 1
    fi
done
