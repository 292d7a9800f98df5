# SPDX-License-Identifier: Apache-2.0
"""Base images from Debian's packages, and the images of docker/Dockerfile on top of them."""

import functools
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import UnavailableError
from tests.campaigns.report import Report

REPOSITORY = Path(__file__).resolve().parents[3]
TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
_SUITE = "bookworm"
_SLIM, _BUILD = "localhost/ocdserve-campaign:slim", "localhost/ocdserve-campaign:build"
_RUNTIME_PACKAGES = "ca-certificates,python3,libpython3.11"
_BUILD_PACKAGES = "g++ python3-dev python3-venv"
# With the certificates that this machine trusts, which may be more than Debian's.
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Image:
    """An image that was built.

    Attributes:
        name: What podman runs.
        bytes: Its size.
        over_base: Bytes of its layers above those of its base image.
        seconds: That the build took.
    """

    name: str
    bytes: int
    over_base: int
    seconds: float


def check_tools() -> None:
    """Raise UnavailableError where the campaign cannot run."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise UnavailableError(
            f"the campaign needs root and {', '.join(TOOLS)}; missing: {', '.join(missing) or 'root'}. "
            f"On Debian: apt-get install {' '.join(TOOLS)}"
        )


def made_bases(folder: Path, report: Report, reuse: bool) -> None:
    """Make the base images of Debian's packages, in place of python:3.12-slim and python:3.12."""
    if reuse and output("buildah", "images", "--quiet", _BUILD, check=False):
        return
    began = time.monotonic()
    archive = folder / "slim.tar"
    output("mmdebstrap", "--variant=minbase", f"--include={_RUNTIME_PACKAGES}", _SUITE, str(archive))
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _commit("scratch", _SLIM, ["add", str(archive), "/"], ["config", "--env", path])
    install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {_BUILD_PACKAGES}"
    trusted = [f"--env={name}={_CERTIFICATES}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
    steps = [["run", "--isolation", "chroot", "--", "sh", "-c", install]]
    steps += [["copy", _CERTIFICATES, _CERTIFICATES], ["config", *trusted]]
    _commit(_SLIM, _BUILD, *steps)
    report.say(f"base images of Debian {_SUITE} in {time.monotonic() - began:.0f} s")


@functools.cache
def built(target: str, reuse: bool = False) -> Image:
    """The image of a target of docker/Dockerfile; built once in a run, or with `reuse` in an earlier one."""
    name = f"localhost/ocdserve-campaign:{target}"
    bases = [f"--build-arg={argument}={base}" for argument, base in (("BUILD_IMAGE", _BUILD), ("BASE_IMAGE", _SLIM))]
    command = ["buildah", "build", "--isolation", "chroot", "--format", "docker", "--layers", *bases]
    began = time.monotonic()
    if not (reuse and output("buildah", "images", "--quiet", name, check=False)):
        output(*command, "--target", target, "--tag", name, "--file", "docker/Dockerfile", ".")
    seconds = time.monotonic() - began
    size, base = (json.loads(output("podman", "image", "inspect", one))[0]["Size"] for one in (name, _SLIM))
    return Image(name, size, size - base, seconds)


def output(*command: str, check: bool = True) -> str:
    """Standard output of a command that is run in the repository.

    Raises:
        UnavailableError: It failed, and `check`; the message ends with its last lines.
    """
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if check and done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UnavailableError(f"{' '.join(command[:6])} ... ended with {done.returncode}:\n{last}")
    return done.stdout


def _commit(base: str, name: str, *steps: list[str]) -> None:
    container = output("buildah", "from", base).strip()
    try:
        for action, *arguments in steps:
            at = (
                arguments.index("--") if "--" in arguments else len(arguments) - (2 if action in ("add", "copy") else 0)
            )
            output("buildah", action, *arguments[:at], container, *arguments[at:])
        output("buildah", "commit", "--quiet", container, name)
    finally:
        output("buildah", "rm", container)
