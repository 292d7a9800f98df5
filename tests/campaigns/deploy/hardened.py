# SPDX-License-Identifier: Apache-2.0
"""A contained server answers as the detector of this machine does, and stops in time under load."""

import argparse
import re
from collections.abc import Sequence

from ocdserve.perf.inputs.image_sets import draw_images
from tests.campaigns.clients import EIGHT_CLIENTS, HEADERS, Load, Plan, Target
from tests.campaigns.deploy.containers import Container, container
from tests.campaigns.deploy.images import built
from tests.campaigns.report import Report
from tests.campaigns.serving import right_answers

_PICTURES = 20
_STOP_S = 10.0
_USER = "10001"


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    images = [image.encoded for image in draw_images("mixed", 4 if args.short else _PICTURES, 17).images]
    with container(built("cpu", args.reuse).name) as served:
        target = served.wait_ready()
        judge_confinement(served, report)
        right = judge_answers(target, images, report)
        health = served.exec("ocdserve", "health", f"http://{target.http}")
        report.equal(f"exit code of the health check ({health.stdout.strip()})", health.returncode, 0)
        with Load(Plan(target, images, right, EIGHT_CLIENTS)) as load:
            while load.running and served.running and _requests(served) < 20:
                pass
            seconds, code = served.stop()
            tally = load.stop()
    wrong = tally.outcomes()["wrong"]
    report.table(f"{len(EIGHT_CLIENTS)} clients until it stopped", HEADERS, [tally.row()], text_columns=0)
    report.equal("wrong answers", wrong, 0)
    report.most("SIGTERM under load", seconds, _STOP_S, " s")
    report.equal("exit code after SIGTERM", code, 0)


def judge_answers(
    target: Target, images: Sequence[bytes], report: Report
) -> dict[tuple[str, str, int], tuple[bytes, ...]]:
    """Record that a server answers as the detector here does; returns the answers, for `Plan.right`."""
    right = right_answers(target, images, None)
    report.rule(
        f"boxes of {len(images)} pictures, over both protocols and both models: those of the detector here",
        f"{len(right)} answers",
        len(right) == 4 * len(images),
    )
    return right


def judge_confinement(served: Container, report: Report) -> None:
    """Record that a container cannot do more than serve."""
    status = served.exec("cat", "/proc/1/status").stdout
    found = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE))
    report.equal("capabilities of its processes", int(found["CapEff"], 16) | int(found["CapBnd"], 16), 0)
    report.equal("no new privileges", found["NoNewPrivs"], "1")
    report.equal("user and group", (found["Uid"].split()[0], found["Gid"].split()[0]), (_USER, _USER))
    written = served.exec("sh", "-c", "touch /opt/ocdserve/x /usr/x /x")
    report.rule("its root takes no file", written.stderr.strip().splitlines()[-1], written.returncode != 0)


def _requests(served: Container) -> int:
    """Requests that its server has answered."""
    script = "import urllib.request as u; print(u.urlopen('http://{}/metrics').read().decode())"
    address = re.search(r"http://(\S+)/metrics", served.logs())
    assert address is not None
    text = served.exec("python", "-c", script.format(address[1])).stdout
    return sum(map(int, re.findall(r'^nv_inference_request_success\{model="ocdnet(?:_fused)?",.*\} (\d+)', text, re.M)))
