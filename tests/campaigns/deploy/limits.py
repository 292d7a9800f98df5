# SPDX-License-Identifier: Apache-2.0
"""The limits of a container hold under a load of large images, and too little shared memory is refused at the start."""

import argparse
import re

from ocdserve.perf.inputs.image_sets import draw_images
from tests.campaigns.clients import HEADERS, Load, Plan
from tests.campaigns.deploy.containers import Container, Size, container
from tests.campaigns.deploy.images import built
from tests.campaigns.report import Report
from tests.campaigns.serving import right_answers

_CLIENTS = (("http", "ocdnet"), ("grpc", "ocdnet"), ("http", "ocdnet_fused"), ("grpc", "ocdnet_fused")) * 4
_GIB, _MIB = 1 << 30, 1 << 20


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    image = built("cpu", args.reuse).name
    with container(image, size=Size(shm="64m")) as small:
        report.rule("64 MB of shared memory: refused at the start", f"exit code {small.wait()}", small.wait() != 0)
        said = small.logs().strip().splitlines()
        text = said[-1] if said else ""
        report.rule("what it says names the folder and the remedy", text, "/dev/shm" in text and "--shm-size" in text)
    # 12 megapixels each.
    images = [one.encoded for one in draw_images("huge", 2 if args.short else 4, 5).images]
    for size, gib in ((Size(memory="3g", shm="256m", tmp="64m", pids=512), 3), (Size(cpus="1"), 4)):
        with container(image, size=size) as served:
            target = served.wait_ready()
            right = right_answers(target, images, None, _CLIENTS[:4])
            requests = len(_CLIENTS) * (2 if args.short else 6)
            with Load(Plan(target, images, right, _CLIENTS, requests)) as load:
                tally = load.tally()
            _judge(report, served, size, gib)
            report.table(
                f"{len(_CLIENTS)} clients with images of 12 megapixels, {size}", HEADERS, [tally.row()], text_columns=0
            )
            refused = tally.outcomes()["503"] + tally.outcomes()["UNAVAILABLE"]
            report.equal("requests neither answered rightly nor refused", len(tally.answers) - tally.right - refused, 0)
            report.rule("right answers: at least half", tally.right, 2 * tally.right >= requests)


def _judge(report: Report, served: Container, size: Size, gib: int) -> None:
    report.most("memory", served.most_memory() / _GIB, gib, " GiB")
    report.equal("processes that the kernel ended for memory", int(served.was_killed_for_memory()), 0)
    listing = served.exec("df", "--output=used,size", "--block-size=1", "/dev/shm", "/tmp").stdout
    (shm, shm_size), (tmp, tmp_size) = (
        (int(used), int(of)) for used, of in re.findall(r"^ *(\d+) +(\d+)$", listing, re.M)
    )
    report.most("shared memory afterwards", shm / _MIB, shm_size / _MIB, " MiB")
    report.most("/tmp", tmp / _MIB, tmp_size / _MIB, " MiB")
    pids = len(served.exec("sh", "-c", "ls -d /proc/[0-9]*/task/*").stdout.split())
    report.most("threads", pids, size.pids)
    report.equal("its server still runs", served.running, True)
