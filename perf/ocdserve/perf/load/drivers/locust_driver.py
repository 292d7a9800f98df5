# SPDX-License-Identifier: Apache-2.0
"""Load by headless locust users, in a process of its own, because gevent patches Python's sockets and threads."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ocdserve.contract import InvalidInputError, UnavailableError, install_command
from ocdserve.perf.load.drivers.payloads import Target
from ocdserve.perf.load.loads import Answer, LoadResult

LOCUSTFILE = Path(__file__).with_name("locustfile.py")

# A process that has written its answers only has to exit.
_EXIT_S = 20.0
_POLL_S = 0.05


def run(target: Target) -> LoadResult:
    """Run the scenario once; see `ocdserve.perf.load.drivers.run_load`.

    Raises:
        InvalidInputError: The scenario is an open loop: locust's users wait for their answers.
        UnavailableError: locust is not installed, or ended without a result; the message has its last lines of output.
    """
    if target.scenario.is_open:
        raise InvalidInputError(
            f"scenario {target.scenario.name!r} is an open loop, and locust's users wait for their answers; "
            "use the driver sdk or perf_analyzer"
        )
    if importlib.util.find_spec("locust") is None:
        raise UnavailableError(f"locust is not installed; run {install_command('ocdserve[perf]')}")
    with tempfile.TemporaryDirectory(prefix="ocdserve-locust-") as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        # Numbered: names must keep the order, and a data set may have the same name twice.
        for number, image in enumerate(target.images.images):
            (images / f"{number:06}{Path(image.name).suffix}").write_bytes(image.encoded)
        answers, log = folder / "answers.json", folder / "locust.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "locust", *arguments(target, images, answers)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
            )
            _wait(process, answers)
        if not answers.is_file():
            lines = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
            raise UnavailableError(f"locust ended with status {process.returncode}: {' '.join(lines)}")
        rows = json.loads(answers.read_text("ascii"))
    if not rows:
        raise UnavailableError("locust made no request")
    found = (Answer(begin, (end - begin) * 1000, error) for begin, end, error in rows)
    return LoadResult(
        "locust", target.scenario, target.images.digest, tuple(sorted(found, key=lambda answer: answer.begin_s))
    )


def arguments(target: Target, images: Path, answers: Path) -> list[str]:
    """Locust's arguments for a scenario; `images` is a folder, `answers` the file that it writes at the end."""
    scenario = target.scenario
    users = str(scenario.concurrency)
    return [
        *("-f", str(LOCUSTFILE), "--headless", "--only-summary", "--exit-code-on-error", "0"),
        *("--users", users, "--spawn-rate", users, "--host", target.url),
        *("--images", str(images), "--model", scenario.model, "--batch", str(scenario.batch)),
        *("--shared-memory", scenario.shared_memory, "--answers", str(answers)),
        *(["--token", str(target.token.absolute())] if target.token else []),
        *("--requests", str(scenario.requests or 0), "--seconds", str(scenario.duration_s or 0.0)),
    ]


def _wait(process: "subprocess.Popen[bytes]", answers: Path) -> None:
    try:
        while process.poll() is None and not answers.is_file():
            time.sleep(_POLL_S)
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
