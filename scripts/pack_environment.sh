#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: pack_environment.sh FILE.tar.gz [PACKAGE[EXTRA]]. Pack what our models need into FILE, for `ocdserve publish
# --environment`. Run it inside the container whose Triton will serve, by its Python: the file holds packages, and a link
# to the Python that it was made with. PACKAGE is `ocdserve[models]`, or a wheel: './ocdserve-0.2.0-....whl[models]'.
# PYTHON names another interpreter than python3, PIP_CONSTRAINT a file of versions; next to requirements.lock those of it
# are taken.
set -euo pipefail
[[ ${1-} == *.tar.gz ]] || { echo "pack_environment.sh: name the file to write, such as environment.tar.gz" >&2; exit 2; }
file=$(realpath "$1") package=${2:-ocdserve[models]} scripts=$(dirname "${BASH_SOURCE[0]}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ -z ${PIP_CONSTRAINT-} && -f $scripts/../requirements.lock ]]; then
    "$scripts/locked.sh" >"$work/pins.txt"
    export PIP_CONSTRAINT=$work/pins.txt
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Without pip, which is half of what an empty environment holds; Debian's Python cannot make one with it.
"${PYTHON:-python3}" -m venv --without-pip "$work/environment"
"${PYTHON:-python3}" -m pip --python "$work/environment/bin/python3" install --quiet "$package"
# The extra gpu brings it; here another Triton serves.
"${PYTHON:-python3}" -m pip --python "$work/environment/bin/python3" uninstall --quiet --yes nvidia-pytriton
env -u PIP_CONSTRAINT "${PYTHON:-python3}" -m pip install --quiet --target "$work/tool" 'venv-pack2>=0.9,<1'
PYTHONPATH=$work/tool "${PYTHON:-python3}" -m venv_pack --force --quiet --prefix "$work/environment" --output "$file"
echo "wrote $file: $(du -h "$file" | cut -f1), unpacked $(du -sh "$work/environment" | cut -f1)"
