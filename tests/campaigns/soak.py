# SPDX-License-Identifier: Apache-2.0
"""Minutes of load with 5 % bad requests: every answer is right, and memory, descriptors and segments stay."""

import argparse
import io
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.campaigns.clients import HEADERS, Load, Plan
from tests.campaigns.report import Report
from tests.campaigns.serving import Held, Sampler, pictures, right_answers, serving, slope_mib_per_minute, small_bundle

_CLIENTS = (("http", "ocdnet"), ("grpc", "ocdnet"), ("http", "ocdnet_fused"))
_BAD_SHARE = 0.05
# Of what the server refuses, and of an image that lost content without a trace.
_ENDS = {"400", "INVALID_ARGUMENT", "200", "OK"}
_MOST_MIB_PER_MINUTE = 1.0
# A slope over less time is noise.
_SLOPE_MINUTES = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--minutes", type=float, metavar="N", help="minutes of load (default: 30, with --short 1)")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    minutes = args.minutes or (1.0 if args.short else 30.0)
    warm_up = min(5.0, minutes / 4)
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "small")
        with serving(bundle.model_path.parent) as server:
            right = right_answers(server.target, images, bundle, _CLIENTS)
            plan = Plan(server.target, images, right, _CLIENTS, bad=_bad(images), bad_share=_BAD_SHARE)
            with Sampler(server, interval_s=2.0) as sampler, Load(plan) as load:
                began = time.monotonic()
                while (passed := time.monotonic() - began) < 60 * minutes and load.running:
                    time.sleep(min(15.0, 60 * minutes - passed))
                    report.say(f"{passed / 60:.1f} of {minutes:g} minutes, {sampler.samples[-1].pss_mib:.0f} MiB PSS")
                # The clients' connections are open at each sample that is judged.
                samples = list(sampler.samples)
                tally = load.stop()
            restarts = server.restarts()
    report.table(f"{minutes:g} minutes of {len(_CLIENTS)} clients", HEADERS, [tally.row()], text_columns=0)
    bad = tally.bad_outcomes()
    report.table("Bad requests", ("outcome", "requests"), sorted(bad.items()))
    report.answered(tally)
    report.equal("bad requests that ended in another way", sum(n for end, n in bad.items() if end not in _ENDS), 0)
    report.equal("lines about restarts", restarts, [])
    _judge(report, [sample for sample in samples if sample.at_s - began >= 60 * warm_up], warm_up)


def _judge(report: Report, samples: Sequence[Held], warm_up: float) -> None:
    first, last = samples[0], samples[-1]
    rows = []
    for process in last.processes:
        slope = slope_mib_per_minute(samples, process.pid)
        counts = [sample.descriptors[process.pid] for sample in samples]
        tenth = max(1, len(counts) // 10)
        before, after = int(median(counts[:tenth])), int(median(counts[-tenth:]))
        rows.append((process.name, process.pid, process.rss_mib, slope, before, after))
        if last.at_s - first.at_s >= 60 * _SLOPE_MINUTES:
            report.most(f"slope of {process.name}'s memory", slope, _MOST_MIB_PER_MINUTE, " MiB/min")
        report.equal(f"open files of {process.name}", after, before)
    report.equal("shared memory segments", last.segments, first.segments)
    headers = ("process", "pid", "RSS MiB", "MiB/min", "files before", "files after")
    report.table(f"Processes after minute {warm_up:g}", headers, rows)


def _bad(images: Sequence[bytes]) -> list[bytes]:
    """Files that are no image, and images that were cut, or changed in some bytes."""
    chance, found = random.Random(14), [b"", b"not an image", io.DEFAULT_BUFFER_SIZE * b"\0"]
    for index in range(200):
        data = bytearray(images[index % len(images)])
        if index % 3 == 0:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found.append(bytes(data))
    return found
