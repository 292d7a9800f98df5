# SPDX-License-Identifier: Apache-2.0
"""The search for capacity against a real server, whose one process answers in a known time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.perf.capacity.bench import ServedBench, served_bench
from ocdserve.perf.capacity.sweep import CapacityPlan, find_best
from ocdserve.perf.inputs.image_sets import EncodedImage, ImageSet, draw_images
from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository
from ocdserve.perf.load.scenarios import Scenario

pytestmark = [pytest.mark.triton, pytest.mark.timed, pytest.mark.long]

DELAY_S = 0.02


def test_the_capacity_of_a_real_server_is_below_what_it_answers_when_never_idle(
    tmp_path: Path, running_server: Callable[..., AbstractContextManager[Any]]
) -> None:
    repository = write_echo_repository(tmp_path / "echo", DELAY_S)
    config = repository / ECHO / "config.pbtxt"
    config.write_text(config.read_text().replace("dynamic_batching { }\n", ""))
    images = ImageSet("echo", (EncodedImage("1.jpg", echo_image(1, 1000)),))
    said: list[str] = []
    with running_server(repository) as server:

        @contextmanager
        def open_bench(tuning: Tuning) -> Iterator[ServedBench]:
            yield ServedBench(
                Scenario("test", model=ECHO, concurrency=1, requests=1), images, server.grpc_url, trial_s=5.0
            )

        outcome = find_best((Tuning(),), open_bench, CapacityPlan(limit_factor=5.0, saturating=100), said.append)
    never_idle = outcome.best.saturated.images_per_second
    # One process that sleeps 20 ms a request.
    assert 0.5 / DELAY_S < never_idle <= 1 / DELAY_S
    # In theory 57 % of it for waits of 4 times the service; busy machines keep less, none keeps more.
    assert 0 < outcome.best.capacity.rate < 0.9 * never_idle
    assert outcome.at_80.rate == pytest.approx(0.8 * outcome.at_capacity.rate)
    assert any("within the limit" in line for line in said)


def test_a_tuning_is_served(tmp_path: Path) -> None:
    tuning = Tuning(threads=1, instances=2, queue_size=20, queue_delay_us=100)
    scenario = Scenario("test", images="tiny", concurrency=2, requests=4)
    with served_bench(tuning, None, scenario, draw_images("tiny", 1, 0), trial_s=1.0) as bench:
        assert len(bench.closed(2, 4).latencies_ms) == 4
