#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: sbom.sh EXTRA[,EXTRA...]. Write out/sbom.json: the packages of an environment of its own that holds ocdserve with
# these extras, in the versions of requirements.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(PATH=$PWD/.venv/bin:$PWD/.tools/bin:$PATH command -v uv) || { echo "sbom.sh: needs uv" >&2; exit 1; }
locked=(--quiet --constraints requirements.lock)
"$uv" venv --quiet --clear --python .venv/bin/python out/sbom
"$uv" pip install "${locked[@]}" --build-constraints requirements.lock --python out/sbom/bin/python ".[$1]"
"$uv" tool run "${locked[@]}" --python .venv/bin/python --from cyclonedx-bom cyclonedx-py environment out/sbom \
    --pyproject pyproject.toml --output-reproducible --output-file out/sbom.json
echo "ocdserve: out/sbom.json lists $(grep -c '"purl"' out/sbom.json) packages"
