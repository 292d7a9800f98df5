# SPDX-License-Identifier: Apache-2.0
"""Requests of the drivers, and the client that sends them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.stages.image import decode
from ocdserve.client import Retry, SharedMemory, TextDetector
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.image_sets import ImageSet
from ocdserve.perf.load.scenarios import Scenario

# A server may still be loading a model at the first request.
_WARM_UP_ATTEMPTS = 5

# Images of one request: encoded, or pixels.
Payload = Sequence[bytes] | Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Target:
    """A scenario with its images and its server.

    Attributes:
        scenario: The load.
        images: Its images.
        url: grpc://HOST:PORT or http://HOST:PORT, according to the scenario's protocol.
        token: File with the token of the server's shared memory.

    Raises:
        InvalidInputError: The URL has another protocol.
    """

    scenario: Scenario
    images: ImageSet
    url: str
    token: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != self.scenario.protocol or not parts.netloc:
            raise InvalidInputError(
                f"scenario {self.scenario.name!r} needs a server at {self.scenario.protocol}://HOST:PORT; "
                f"got {self.url!r}"
            )

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return urlsplit(self.url).netloc

    @cached_property
    def payloads(self) -> tuple[Payload, ...]:
        """Images of each request: as many requests as images, each beginning with a different image."""
        items: list[Any] = [image.encoded for image in self.images.images]
        if self.scenario.takes_pixels:
            items = [decode(item) for item in items]
        batch = self.scenario.batch
        return tuple([items[(first + more) % len(items)] for more in range(batch)] for first in range(len(items)))


def client_for(target: Target, attempts: int = 1) -> TextDetector:
    """A detector; by default without retries, so that errors are counted."""
    scenario, shared = target.scenario, target.scenario.shared_memory
    memory = None if shared == "none" else SharedMemory(shared, scenario.concurrency or 8, token=target.token)
    return TextDetector(target.url, model=scenario.model, retry=Retry(attempts), shared_memory=memory)


def send(detector: TextDetector, payload: Payload) -> None:
    """Send one request and wait for its answer.

    Raises:
        OcdserveError: The request failed.
    """
    if len(payload) == 1:
        detector.detect(payload[0])
    else:
        detector.detect_batch(payload)


def warm_up(target: Target) -> None:
    """Send each image once, one after the other.

    Raises:
        OcdserveError: A request failed.
    """
    with client_for(target, _WARM_UP_ATTEMPTS) as detector:
        for payload in target.payloads:
            send(detector, payload)
