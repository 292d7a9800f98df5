# SPDX-License-Identifier: Apache-2.0
"""Add the digests that their registries name to the images in docker/, or renew them; the tags stay as they are.

Usage: pin_images.py [FILE...]. Exit code 1: a registry did not answer for an image, which is left as it was.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

FILES = ("docker/Dockerfile", "docker/compose.yaml")
# An argument's default and a service's image, but for the images that are built from docker/Dockerfile.
IMAGE = re.compile(r"^(ARG \w+_IMAGE=| *image: )(?!ocdserve:)([^\s@]+)(?:@\S+)?$", re.MULTILINE)
# Of all architectures, where there are several.
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TIMEOUT_S = 30


def main(files: list[str]) -> int:
    """Pin the images of these files; returns the exit code."""
    root = Path(__file__).resolve().parents[1]
    failed = 0
    for file in [Path(name) for name in files] or [root / name for name in FILES]:
        text = file.read_text("utf-8")
        for start, image in IMAGE.findall(text):
            try:
                pinned = f"{image}@{digest(image)}"
            except (OSError, ValueError) as error:
                failed += 1
                print(f"ocdserve: {image} is left without a new digest: {error}", file=sys.stderr)
                continue
            text = re.sub(rf"^{re.escape(start + image)}(@\S+)?$", start + pinned, text, flags=re.MULTILINE)
            print(pinned)
        file.write_text(text, "utf-8")
    return 1 if failed else 0


def digest(image: str) -> str:
    """The digest that a registry names for `[HOST/]NAME:TAG`.

    Raises:
        OSError: The registry does not answer, or refuses.
        ValueError: Its answer has no digest.
    """
    host, _, name = image.rpartition(":")[0].partition("/")
    if not re.search(r"[.:]|^localhost$", host):
        host, name = "docker.io", f"{host}/{name}" if name else host
    if host == "docker.io":
        host, name = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    scheme = "http" if host.startswith(("localhost:", "127.0.0.1:")) else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{image.rpartition(':')[2]}"
    request = urllib.request.Request(url, headers={"Accept": ", ".join(MANIFESTS)}, method="HEAD")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        request.add_header("Authorization", f"Bearer {token(error.headers.get('WWW-Authenticate', ''))}")
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    with answer:
        found = answer.headers.get("Docker-Content-Digest", "")
    if not DIGEST.fullmatch(found):
        raise ValueError(f"{host} names no digest ({found!r})")
    return str(found)


def token(challenge: str) -> str:
    """An anonymous token to pull with, from the address that the challenge names.

    Raises:
        ValueError: The challenge names no address, or there is no token.
    """
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = parameters.pop("realm", "")
    if not realm.startswith(("https://", "http://127.0.0.1:")):
        raise ValueError(f"its challenge names no address: {challenge!r}")
    with urllib.request.urlopen(f"{realm}?{urllib.parse.urlencode(parameters)}", timeout=TIMEOUT_S) as answer:
        content = json.load(answer)
    found = content.get("token") or content.get("access_token")
    if not isinstance(found, str):
        raise ValueError(f"{realm} gives no token")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
