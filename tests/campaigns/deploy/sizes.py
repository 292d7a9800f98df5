# SPDX-License-Identifier: Apache-2.0
"""How large the images are over their base, and of what packages."""

import argparse
import re
from collections import Counter

from tests.campaigns.deploy.containers import container
from tests.campaigns.deploy.images import built
from tests.campaigns.report import Report

_MB = 1_000_000
_MOST_MB = 900
# Smaller packages are summed.
_SHOWN_MB = 8
_PACKAGES = "cd /opt/ocdserve/lib/python3*/site-packages && du --bytes --max-depth=1"


def run(args: argparse.Namespace, report: Report) -> None:
    """Build `cpu` and `builder`, with --short `cpu` only, and the compiled pycuda of `gpu`."""
    cpu = built("cpu", args.reuse)
    report.most("image cpu over its base", cpu.over_base / _MB, _MOST_MB, " MB")
    with container(cpu.name, ["-c", _PACKAGES], options=["--entrypoint=sh"]) as listing:
        report.equal("exit code of the listing", listing.wait(), 0)
        sizes = _by_package(listing.logs())
    shown = {name: size for name, size in sizes.items() if size >= _SHOWN_MB * _MB}
    rows = [(name, size / _MB) for name, size in sorted(shown.items(), key=lambda item: -item[1])]
    rows.append((f"{len(sizes) - len(shown)} others", (sum(sizes.values()) - sum(shown.values())) / _MB))
    report.table("Packages of image cpu", ("package", "MB"), rows)
    images = (
        {"cpu": cpu}
        if args.short
        else {"cpu": cpu, "builder": built("builder", args.reuse), "pycuda": built("pycuda", args.reuse)}
    )
    report.table(
        "Images",
        ("target", "MB", "MB over its base", "build s"),
        [(name, round(one.bytes / _MB), round(one.over_base / _MB), one.seconds) for name, one in images.items()],
    )


def _by_package(listing: str) -> Counter[str]:
    """Bytes of the folders of packages; `NAME.libs` and `NAME-1.0.dist-info` count for NAME."""
    sizes: Counter[str] = Counter()
    for size, name in re.findall(r"^(\d+)\t\./([^\s/]+)$", listing, re.MULTILINE):
        package = re.sub(r"\.libs$|-[^-]*\.dist-info$", "", name).lower()
        sizes[{"opencv_python_headless": "cv2", "nvidia_pytriton": "pytriton"}.get(package, package)] += int(size)
    return sizes
