# SPDX-License-Identifier: Apache-2.0
"""Load scenarios: what is sent, how, how fast and for how long, with a version that changes with them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ocdserve.contract import ENSEMBLE, ENSEMBLE_RAW, FUSED, MAX_BATCH_SIZE, MODELS, InvalidInputError
from ocdserve.perf.inputs.image_sets import DRAWN, PHOTOGRAPHS, ImageSet, draw_images, load_images

Protocol = Literal["grpc", "http"]
SharedMemoryKind = Literal["none", "system", "cuda"]

# Part of every version: raised when the same fields come to mean another load.
_FORMAT = 1


@dataclass(frozen=True)
class Scenario:
    """One load.

    Attributes:
        name: Its name.
        images: `photographs`, whose folders the caller names, or a kind of drawn images (see `image_sets.DRAWN`).
        count: Images in a drawn set.
        protocol: `grpc` or `http`.
        model: Served model that takes IMAGE, or `ocdnet_raw`, which takes PIXELS.
        concurrency: Closed loop: clients that each send a request as soon as the last one is answered.
        rate: Open loop: mean requests per second; they arrive at random (Poisson), independently of the answers.
        requests: Total number of requests.
        duration_s: Duration in seconds. Exactly one of the two is set.
        batch: Images per request.
        shared_memory: How pixels are transferred; `system` and `cuda` only for `ocdnet_raw`.
        seed: Seed of drawn images and of arrivals.

    Raises:
        InvalidInputError: A field is not valid, or fields contradict each other; the message names them.
    """

    name: str
    images: str = "scene"
    count: int = 8
    protocol: Protocol = "grpc"
    model: str = ENSEMBLE
    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    batch: int = 1
    shared_memory: SharedMemoryKind = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        kinds = (PHOTOGRAPHS, *DRAWN)
        if self.images not in kinds:
            raise self._wrong("images", f"one of {', '.join(kinds)}")
        if self.protocol not in get_args(Protocol):
            raise self._wrong("protocol", f"one of {', '.join(get_args(Protocol))}")
        if self.shared_memory not in get_args(SharedMemoryKind):
            raise self._wrong("shared_memory", f"one of {', '.join(get_args(SharedMemoryKind))}")
        if not self.model:
            raise self._wrong("model", "the name of a served model")
        for name, least, highest in (
            ("count", 1, 10_000),
            ("concurrency", 1, 1024),
            ("requests", 1, 10_000_000),
            ("batch", 1, MAX_BATCH_SIZE),
            ("seed", 0, 2**32),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value <= highest):
                raise self._wrong(name, f"a whole number from {least} to {highest}")
        for name, most in (("rate", 1e5), ("duration_s", 86_400.0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 < value <= most):
                raise self._wrong(name, f"a number above 0, at most {most:g}")
        for one, other in (("concurrency", "rate"), ("requests", "duration_s")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise InvalidInputError(
                    f"scenario {self.name!r}: give exactly one of {one} and {other}; "
                    f"got {getattr(self, one)} and {getattr(self, other)}"
                )
        if self.shared_memory != "none" and not self.takes_pixels:
            raise self._wrong("shared_memory", f"none, or model {ENSEMBLE_RAW}: only pixels go through shared memory")
        if self.takes_pixels and self.batch > 1:
            raise self._wrong("batch", f"1 for {self.model}: pixels of one request have one size")

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change with every field but the name."""
        fields = asdict(self)
        del fields["name"]
        return _digest(fields)

    def group(self, images_digest: str) -> str:
        """The group of the results: equal only for runs over the same images and of the same length.

        What is varied (concurrency, rate, protocol, batch, shared memory) is in the factors of the results.
        """
        length = {"requests": self.requests, "duration_s": self.duration_s}
        return f"{self.name}@{_digest({'images': images_digest, **length})}"

    @property
    def takes_pixels(self) -> bool:
        """Whether requests carry PIXELS instead of IMAGE; unknown models take IMAGE."""
        return self.model in MODELS and "PIXELS" in [spec.name for spec in MODELS[self.model].inputs]

    @property
    def is_open(self) -> bool:
        """Whether requests arrive at a rate, independently of the answers."""
        return self.rate is not None

    def image_set(self, folders: Sequence[Path] | None = None) -> ImageSet:
        """The images, drawn or read from folders.

        Raises:
            InvalidInputError: The scenario sends photographs, and there are no folders or they hold none.
        """
        if self.images != PHOTOGRAPHS:
            return draw_images(self.images, self.count, self.seed)
        if not folders:
            raise InvalidInputError(f"scenario {self.name!r} sends photographs; name their folders with --data")
        return load_images(folders)

    def arrivals_s(self) -> tuple[float, ...]:
        """Open loop: when each request is due, in seconds from the start."""
        assert self.rate is not None
        return arrivals_s(self.rate, self.seed, self.requests, self.duration_s)

    def _wrong(self, name: str, rule: str) -> InvalidInputError:
        return InvalidInputError(f"scenario {self.name!r}: {name} must be {rule}; got {getattr(self, name)!r}")


def arrivals_s(rate: float, seed: int, requests: int | None, duration_s: float | None) -> tuple[float, ...]:
    """Arrivals of a Poisson process, ascending, in seconds from the start.

    Args:
        rate: Mean arrivals per second.
        seed: Seed of the random numbers.
        requests: Number of arrivals; None: as many as fall within `duration_s`, at least one.
        duration_s: In seconds; used only if `requests` is None.
    """
    random = np.random.default_rng(seed)
    if requests is not None:
        return tuple(float(due) for due in random.exponential(1 / rate, requests).cumsum())
    assert duration_s is not None
    dues = [float(random.exponential(1 / rate))]
    while (due := dues[-1] + float(random.exponential(1 / rate))) < duration_s:
        dues.append(due)
    return tuple(dues)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({**fields, "format": _FORMAT}, sort_keys=True).encode()).hexdigest()[:12]


def scenario_named(name: str) -> Scenario:
    """The scenario of this name.

    Raises:
        InvalidInputError: There is none.
    """
    found = next((scenario for scenario in SCENARIOS if scenario.name == name), None)
    if found is None:
        known = ", ".join(scenario.name for scenario in SCENARIOS)
        raise InvalidInputError(f"no scenario is called {name!r}; known are {known}")
    return found


SCENARIOS = (
    Scenario("quick", concurrency=2, requests=12),
    Scenario("scene", concurrency=8, requests=120),
    Scenario("scene-http", protocol="http", concurrency=8, requests=120),
    Scenario("fused", model=FUSED, concurrency=8, requests=120),
    Scenario("photographs", images=PHOTOGRAPHS, concurrency=4, requests=200),
    Scenario("dense", images="dense", count=4, concurrency=4, requests=60),
    Scenario("sparse", images="sparse", concurrency=4, requests=100),
    Scenario("huge", images="huge", count=3, concurrency=4, requests=60),
    Scenario("tiny", images="tiny", count=12, concurrency=4, requests=200),
    Scenario("mixed", images="mixed", count=16, concurrency=8, requests=120),
    Scenario("batch", batch=4, concurrency=2, requests=30),
    Scenario("pixels", model=ENSEMBLE_RAW, concurrency=4, requests=60),
    Scenario("shared-memory", model=ENSEMBLE_RAW, shared_memory="system", concurrency=4, requests=60),
    Scenario("cuda-memory", model=ENSEMBLE_RAW, shared_memory="cuda", concurrency=4, requests=60),
    Scenario("open", rate=2.0, duration_s=60.0),
    Scenario("open-fused", model=FUSED, rate=2.0, duration_s=60.0),
    # For memory growth: image sizes change all the time, and so do the network's input shapes.
    Scenario("endurance", images="mixed", count=16, concurrency=4, requests=10_000),
)


def catalogue() -> str:
    """The scenarios as text, one per line."""
    lines = []
    for scenario in SCENARIOS:
        load = f"{scenario.rate:g} requests/s" if scenario.is_open else f"{scenario.concurrency} clients"
        end = f"{scenario.requests} requests" if scenario.requests else f"{scenario.duration_s:g} s"
        more = f", batches of {scenario.batch}" if scenario.batch > 1 else ""
        more += f", {scenario.shared_memory} shared memory" if scenario.shared_memory != "none" else ""
        lines.append(
            f"{scenario.name:14} {scenario.images:12} {scenario.model:13} {scenario.protocol}  {load}, {end}{more}"
        )
    return "\n".join(lines)
