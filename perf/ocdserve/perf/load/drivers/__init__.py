# SPDX-License-Identifier: Apache-2.0
"""Load drivers: the SDK, NVIDIA's perf_analyzer and locust; all run the same scenarios and return raw latencies."""

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
        warm: Whether to send each image once untimed before, since a server prepares for each new size of image.

    Raises:
        InvalidInputError: There is no such driver, or it does not support this load.
        UnavailableError: The server or the driver's program is not available.
    """
    if driver not in DRIVERS:
        raise InvalidInputError(f"no driver is called {driver!r}; known are {', '.join(DRIVERS)}")
    if warm:
        warm_up(target)
    return DRIVERS[driver](target)
