#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install detectors that `ocdserve bench` compares with ours but that cannot share its environment, into one environment
# each: .tools/peers, or the folder OCDSERVE_PEERS. Nothing is done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${OCDSERVE_PEERS:-.tools/peers}

for package in faster-paddle==1.0.4 rapidocrlite==5.0.0a15; do
    environment=$folder/${package%%==*}
    [[ -f $environment/$package ]] && continue
    rm -rf "$environment"
    .venv/bin/python -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
    touch "$environment/$package"
done
echo "install_peers: $folder has faster-paddle (MIT) and rapidocrlite (Apache-2.0). The latter holds Indra's weights, whose" \
    "licence forbids their use to large companies and to who offers competing products: rapidocr/models/lite/LICENSE" >&2
