# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: loading either of the two modules, and their messages.

Both have the same Python API, so that everything above this module is written once.
"""

import functools
import importlib
import threading
from dataclasses import dataclass, field
from typing import Any

from ocdserve.backend.network.options import RUNTIMES
from ocdserve.contract import UnavailableError


@dataclass(frozen=True)
class Library:
    """One of the two modules, loaded.

    Attributes:
        trt: The module.
        logger: The logger for all of its objects; its plugins keep a pointer to it until the process ends.
        warnings: The library's warnings; the caller clears them.
        errors: The library's errors; the caller clears them.
        lock: Held while the library is used, so that messages can be attributed to a call.
    """

    runtime: str
    trt: Any
    logger: Any
    warnings: list[str]
    errors: list[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{RUNTIMES[self.runtime].title} {self.version}"

    def forget_messages(self) -> None:
        self.warnings.clear()
        self.errors.clear()

    def reason(self) -> str:
        """Why the last call failed, from the library's own messages."""
        return "; ".join(self.errors[-3:]) or "it gave no reason"


@functools.cache
def load(runtime: str) -> Library:
    """Import the module of a runtime.

    Raises:
        UnavailableError: It is not installed, or does not load.
    """
    known = RUNTIMES[runtime]
    try:
        trt: Any = importlib.import_module(known.module)
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(
            f"{known.title} cannot be loaded: {error}. Install the package {known.distributions[0]}."
        ) from error
    warnings: list[str] = []
    errors: list[str] = []
    logger = _logger(trt, warnings, errors)
    trt.init_libnvinfer_plugins(logger, "")
    return Library(runtime, trt, logger, warnings, errors)


def runtime_version(runtime: str) -> str:
    """Version of the installed runtime, for example `1.7.1.116`.

    Raises:
        UnavailableError: It is not installed.
    """
    return load(runtime).version


def _logger(trt: Any, warnings: list[str], errors: list[str]) -> Any:
    base: Any = trt.ILogger

    class Collector(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity == base.WARNING and text not in warnings:
                warnings.append(text)
            elif severity in (base.ERROR, base.INTERNAL_ERROR):
                errors.append(text)

    return Collector()
