#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# List packages, with licences, as CycloneDX:
#
# sbom.sh EXTRA[,EXTRA...]          in out/sbom.json, those of a new environment with ocdserve and these extras, in the
#                                   versions of requirements.lock
# sbom.sh --of ENVIRONMENT FILE     in FILE, those of an existing environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(PATH=$PWD/.venv/bin:$PWD/.tools/bin:$PATH command -v uv) || { echo "sbom.sh: needs uv" >&2; exit 1; }
locked=(--quiet --constraints requirements.lock)
if [[ $1 == --of ]]; then
    environment=$2 file=$3
else
    environment=out/sbom file=out/sbom.json
    "$uv" venv --quiet --clear --python .venv/bin/python "$environment"
    "$uv" pip install "${locked[@]}" --build-constraints requirements.lock --python "$environment/bin/python" ".[$1]"
fi
"$uv" tool run "${locked[@]}" --python "$environment/bin/python" --from cyclonedx-bom \
    cyclonedx-py environment "$environment" --pyproject pyproject.toml --output-reproducible --output-file "$file"
echo "ocdserve: $file lists $(grep -c '"purl"' "$file") packages"
