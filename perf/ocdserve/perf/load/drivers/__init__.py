# SPDX-License-Identifier: Apache-2.0
"""What makes load: the SDK, NVIDIA's perf_analyzer and locust, each from the same scenario, each with raw latencies."""

from collections.abc import Callable, Mapping

from ocdserve.contract import InvalidInputError
from ocdserve.perf.load.drivers import locust_driver, perf_analyzer_driver, sdk
from ocdserve.perf.load.drivers.payloads import Target, warm_up
from ocdserve.perf.load.loads import LoadResult

__all__ = ["DRIVERS", "Driver", "Target", "run_load", "warm_up"]

Driver = Callable[[Target], LoadResult]

DRIVERS: Mapping[str, Driver] = {
    "sdk": sdk.run,
    "perf_analyzer": perf_analyzer_driver.run,
    "locust": locust_driver.run,
}


def run_load(driver: str, target: Target, warm: bool = True) -> LoadResult:
    """Run a scenario once.

    Args:
        driver: A key of `DRIVERS`.
        target: What to send, and where.
        warm: Whether each image is sent once before, untimed, so that no run pays for what a server does once a size.

    Raises:
        InvalidInputError: There is no such driver, or it cannot make this load.
        UnavailableError: The server or the driver's program is not there.
    """
    if driver not in DRIVERS:
        raise InvalidInputError(f"no driver is called {driver!r}; known are {', '.join(DRIVERS)}")
    if warm:
        warm_up(target)
    return DRIVERS[driver](target)
