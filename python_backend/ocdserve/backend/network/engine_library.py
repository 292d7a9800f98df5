# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: loading either of the two modules, and their messages.

Both have the same Python API, so that everything above this module is written once.
"""

import functools
import importlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ocdserve.backend.network.options import RUNTIMES
from ocdserve.contract import UnavailableError

# Messages that are kept of each kind, and errors that a reason names: the last ones say what the first led to.
_KEPT = 256
_NAMED = 3


@dataclass(frozen=True)
class _Message:
    number: int
    thread: int
    text: str


class Messages:
    """The newest warnings and errors of a library's logger, which writes them from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._warnings: deque[_Message] = deque(maxlen=_KEPT)
        self._errors: deque[_Message] = deque(maxlen=_KEPT)

    def add(self, text: str, is_error: bool) -> None:
        """Keep a message of the calling thread."""
        with self._lock:
            self._count += 1
            kept = self._errors if is_error else self._warnings
            kept.append(_Message(self._count, threading.get_ident(), " ".join(text.split())))

    def watch(self) -> "Watch":
        """See `Watch`."""
        return Watch(self, self._count)

    def warnings_after(self, number: int) -> list[_Message]:
        """The warnings after the message of that number, oldest first."""
        with self._lock:
            return [message for message in self._warnings if message.number > number]

    def errors_after(self, number: int) -> list[_Message]:
        """The same of errors."""
        with self._lock:
            return [message for message in self._errors if message.number > number]


@dataclass(frozen=True)
class Watch:
    """What a library says from one moment on; never what it said before, about another call."""

    messages: Messages
    number: int

    def warnings(self) -> tuple[str, ...]:
        """The warnings, each once."""
        return tuple(dict.fromkeys(message.text for message in self.messages.warnings_after(self.number)))

    def errors(self) -> tuple[str, ...]:
        """The errors of the calling thread or, if it has none, of the threads that work for it."""
        found = self.messages.errors_after(self.number)
        own = [message for message in found if message.thread == threading.get_ident()]
        return tuple(message.text for message in own or found)

    def reason(self) -> str:
        """Why a call failed, in the library's own words."""
        return "; ".join(self.errors()[-_NAMED:]) or "it gave no reason"


@dataclass(frozen=True)
class Library:
    """One of the two modules, loaded.

    Attributes:
        trt: The module.
        logger: The logger for all of its objects; its plugins keep a pointer to it until the process ends.
        messages: What the logger received.
        lock: Held while an engine is built: a builder logs from threads of its own, whose messages cannot be
            separated from those of another. Engines are loaded and executed without it; they log from the calling
            thread.
    """

    runtime: str
    trt: Any
    logger: Any
    messages: Messages = field(default_factory=Messages)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{RUNTIMES[self.runtime].title} {self.version}"

    def watch(self) -> Watch:
        """What the library says from now on."""
        return self.messages.watch()


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
    messages = Messages()
    logger = _logger(trt, messages)
    trt.init_libnvinfer_plugins(logger, "")
    return Library(runtime, trt, logger, messages)


def runtime_version(runtime: str) -> str:
    """Version of the installed runtime, for example `1.7.1.116`.

    Raises:
        UnavailableError: It is not installed.
    """
    return load(runtime).version


def _logger(trt: Any, messages: Messages) -> Any:
    base: Any = trt.ILogger

    class Collector(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.WARNING, base.ERROR, base.INTERNAL_ERROR):
                messages.add(message, severity != base.WARNING)

    return Collector()
