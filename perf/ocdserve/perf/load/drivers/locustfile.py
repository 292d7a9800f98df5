# SPDX-License-Identifier: Apache-2.0
"""Locust users that detect text over gRPC or HTTP, as the host's URL says; with locust's web page, or headless.

    locust -f locustfile.py --host grpc://127.0.0.1:8001 --images FOLDER

Each user has a client of its own, and sends its next image as soon as the last one is answered.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

# Before anything opens a channel: otherwise one waiting user blocks all others.
from grpc.experimental import gevent as grpc_gevent

grpc_gevent.init_gevent()

import gevent  # noqa: E402
from locust import User, events, task  # noqa: E402
from locust.exception import StopUser  # noqa: E402

from ocdserve.contract import ENSEMBLE, OcdserveError  # noqa: E402
from ocdserve.perf.inputs.image_sets import ImageSet, draw_images, load_images  # noqa: E402
from ocdserve.perf.load.drivers.payloads import Target, client_for, send  # noqa: E402
from ocdserve.perf.load.scenarios import Scenario  # noqa: E402


def _add_arguments(parser: Any) -> None:
    parser.add_argument("--images", default="", help="folder with image files (default: drawn ones)")
    parser.add_argument("--model", default=ENSEMBLE, help="served model that takes IMAGE or PIXELS")
    parser.add_argument("--batch", type=int, default=1, help="images per request")
    parser.add_argument("--requests", type=int, default=0, help="total number of requests; 0: no limit")
    parser.add_argument("--seconds", type=float, default=0.0, help="duration in seconds; 0: no limit")
    parser.add_argument("--shared-memory", default="none", choices=("none", "system", "cuda"))
    parser.add_argument("--token", default="", help="file that `ocdserve serve --shared-memory FILE` wrote")
    parser.add_argument("--answers", default="", include_in_web_ui=False, help="file for the times of each request")


class _Run:
    """State shared by the users of a run; they are greenlets of one hub, so it needs no locks."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        # The web page may set other images for the next run.
        self.images: ImageSet | None = None
        self.start = time.perf_counter()
        self.numbers = itertools.count()
        self.users = 0
        # Begin and end in seconds from the start, class name of the error.
        self.answers: list[tuple[float, float, str]] = []


_RUN = _Run()


def _write_answers(environment: Any, **_: Any) -> None:
    if environment.parsed_options.answers:
        target = Path(environment.parsed_options.answers)
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(_RUN.answers), "ascii")
        draft.replace(target)


events.init_command_line_parser.add_listener(_add_arguments)
events.test_start.add_listener(lambda **_: _RUN.begin())
events.quitting.add_listener(_write_answers)


class Detection(User):  # type: ignore[misc]
    """Sends images to the host."""

    def on_start(self) -> None:
        options = self.environment.parsed_options
        if _RUN.images is None:
            _RUN.images = load_images([Path(options.images)]) if options.images else draw_images("scene", 8, 0)
        self._protocol = str(self.host).partition("://")[0]
        self._options = options
        scenario = Scenario(
            "locust",
            protocol=self._protocol,  # type: ignore[arg-type]
            model=options.model,
            batch=options.batch,
            shared_memory=options.shared_memory,
            concurrency=1,
            requests=1,
        )
        target = Target(scenario, _RUN.images, self.host, Path(options.token) if options.token else None)
        self._payloads = target.payloads
        self._detector = client_for(target)
        _RUN.users += 1
        # Opens the connection, which takes half a second the first time under gevent.
        self._send(0)

    def on_stop(self) -> None:
        # An open channel keeps the process from ending.
        self._detector.close()
        _RUN.users -= 1
        if self._options.headless and not _RUN.users:
            gevent.spawn(self.environment.runner.quit)

    @task  # type: ignore[untyped-decorator]
    def detect(self) -> None:
        """Send the next image; stop at the end of the run."""
        number, begin = next(_RUN.numbers), time.perf_counter()
        if number == 0:
            _RUN.start = begin
        if 0 < self._options.requests <= number or 0 < self._options.seconds <= begin - _RUN.start:
            raise StopUser
        failure = self._send(number)
        end = time.perf_counter()
        _RUN.answers.append((begin - _RUN.start, end - _RUN.start, type(failure).__name__ if failure else ""))
        self.environment.events.request.fire(
            request_type=self._protocol,
            name=self._options.model,
            response_time=(end - begin) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )

    def _send(self, number: int) -> OcdserveError | None:
        try:
            send(self._detector, self._payloads[number % len(self._payloads)])
        except OcdserveError as error:
            return error
        return None
