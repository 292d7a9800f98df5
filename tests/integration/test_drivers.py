# SPDX-License-Identifier: Apache-2.0
"""The three drivers measure the same on one real server."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.image_sets import EncodedImage, ImageSet, draw_images
from ocdserve.perf.load.drivers import Target, run_load
from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.perf_analyzer import installed_program
from ocdserve.perf.load.scenarios import Scenario

pytestmark = [pytest.mark.triton, pytest.mark.timed]

IMAGES = ImageSet("echo", tuple(EncodedImage(f"{n}.jpg", echo_image(n, 20_000)) for n in range(1, 5)))
# What the model takes for an execution, asleep: a busy machine makes it little longer.
DELAY_S = 0.02
# Between medians of drivers that measure the same; a driver that is wrong about concurrency or arrivals misses by 2.
AGREED = 1.5
# A process of locust takes seconds to start; that it runs is seen where the drivers are compared.
EACH_DRIVER = pytest.mark.parametrize(
    "driver", ["sdk", "perf_analyzer", pytest.param("locust", marks=pytest.mark.long)]
)


@pytest.fixture(scope="module")
def echo_server(
    tmp_path_factory: pytest.TempPathFactory, running_server: Callable[..., AbstractContextManager[Any]]
) -> Iterator[Any]:
    repository = write_echo_repository(tmp_path_factory.mktemp("drivers") / "echo", DELAY_S)
    # Without batches, for whether clients fall into step and share one is left to chance, and doubles the speed.
    config = repository / ECHO / "config.pbtxt"
    config.write_text(config.read_text().replace("dynamic_batching { }\n", ""))
    with running_server(repository) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    # Never imported here: locust has gevent replace the threads of its process.
    if importlib.util.find_spec("locust") is None:
        pytest.skip("locust is not installed; the extra perf has it")
    try:
        installed_program(lambda message: None)
    except UnavailableError as error:
        pytest.skip(f"no perf_analyzer: {error}")


def target(server: Any, **fields: Any) -> Target:
    scenario = Scenario("test", model=ECHO, **fields)
    return Target(scenario, IMAGES, {"grpc": server.grpc_url, "http": server.http_url}[scenario.protocol])


def in_turns(drivers: list[str], target: Target, rounds: int) -> dict[str, list[LoadResult]]:
    results: dict[str, list[LoadResult]] = {driver: [] for driver in drivers}
    for turn in range(rounds):
        for driver in drivers[turn % len(drivers) :] + drivers[: turn % len(drivers)]:
            results[driver].append(run_load(driver, target, warm=False))
    return results


def spread(values: list[float]) -> float:
    return max(values) / min(values)


def check_agreement(results: dict[str, list[LoadResult]], requests: int) -> None:
    for passes in results.values():
        assert all(len(one.latencies_ms) == requests and not one.errors for one in passes)
    # Other load on the machine only adds time, so the best pass of each counts.
    latencies = [min(median(one.latencies_ms) for one in passes) for passes in results.values()]
    rates = [max(one.images_per_second for one in passes) for passes in results.values()]
    assert spread(latencies) < AGREED, latencies
    assert spread(rates) < AGREED, rates


def test_drivers_agree_about_a_closed_loop(echo_server: Any) -> None:
    results = in_turns(["sdk", "perf_analyzer", "locust"], target(echo_server, concurrency=4, requests=48), rounds=2)
    check_agreement(results, 48)


def test_drivers_agree_about_an_open_loop(echo_server: Any) -> None:
    results = in_turns(["sdk", "perf_analyzer"], target(echo_server, rate=20.0, requests=30), rounds=2)
    check_agreement(results, 30)
    dues = [[answer.begin_s for answer in passes[0].answers] for passes in results.values()]
    assert dues[0] == dues[1]


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("drivers", "load"),
    [
        (["sdk", "perf_analyzer", "locust"], {"concurrency": 1}),
        (["sdk", "perf_analyzer", "locust"], {"concurrency": 6}),
        (["sdk", "perf_analyzer"], {"rate": 25.0}),
    ],
)
def test_drivers_agree_over_several_rounds(
    protocol: str, drivers: list[str], load: dict[str, Any], echo_server: Any
) -> None:
    results = in_turns(drivers, target(echo_server, protocol=protocol, requests=100, **load), rounds=3)
    check_agreement(results, 100)


@EACH_DRIVER
def test_a_duration_ends_the_run(driver: str, echo_server: Any) -> None:
    result = run_load(driver, target(echo_server, concurrency=2, duration_s=0.6), warm=False)
    assert result.answers and all(answer.begin_s < 0.75 for answer in result.answers)
    assert not result.errors


@EACH_DRIVER
def test_pixels_go_through_shared_memory(driver: str, default_server: Any) -> None:
    scenario = Scenario("test", model="ocdnet_raw", shared_memory="system", concurrency=2, requests=4)
    target = Target(scenario, draw_images("tiny", 2, 0), default_server.grpc_url, default_server.options.shared_memory)
    result = run_load(driver, target, warm=False)
    assert len(result.latencies_ms) == 4 and not result.errors


@EACH_DRIVER
def test_a_server_that_refuses_is_not_a_fast_one(driver: str, default_server: Any) -> None:
    images = ImageSet("broken", (EncodedImage("broken.jpg", b"no image"),))
    broken = Target(Scenario("test", concurrency=1, requests=4), images, default_server.grpc_url)
    if driver == "perf_analyzer":
        # It gives up on the first error.
        with pytest.raises(UnavailableError, match="perf_analyzer ended with status"):
            run_load(driver, broken, warm=False)
    else:
        result = run_load(driver, broken, warm=False)
        assert result.errors == {"InvalidInputError": 4} and result.images_per_second == 0
