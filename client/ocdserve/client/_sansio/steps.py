# SPDX-License-Identifier: Apache-2.0
"""The steps that a call yields; the facade performs each and sends back its result or throws its `OcdserveError`."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.regions import Region

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send a request to a server; the result is its output tensors by name."""

    server: int
    request: InferRequest


@dataclass(frozen=True)
class Probe:
    """Ask a server whether a model is ready; the result is a bool."""

    server: int
    model: str
    timeout_s: float


@dataclass(frozen=True)
class Describe:
    """Ask a server for the KServe v2 metadata of a model, or of itself (None); the result is a mapping."""

    server: int
    model: str | None
    timeout_s: float


@dataclass(frozen=True)
class Register:
    """Register shared memory with a server."""

    server: int
    region: Region
    timeout_s: float


@dataclass(frozen=True)
class Unregister:
    """Unregister shared memory from a server."""

    server: int
    region: Region
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Step: TypeAlias = Send | Probe | Describe | Register | Unregister | Pause
Steps: TypeAlias = Generator[Step, Any, T]
