# SPDX-License-Identifier: Apache-2.0
"""Lines of the launcher's, Triton's and the models' logs, as text or as JSON."""

import contextlib
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal, TextIO

# Name of a model that is to fail when it is loaded.
BROKEN = "ocdserve_draining"

LogFormat = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_LEVELS: dict[str, Level] = {"E": "error", "F": "error", "W": "warning", "I": "info", "V": "debug"}
_ENTRY = re.compile(
    r"(?P<level>[EWIFV])(?P<time>\d{4} \d\d:\d\d:\d\d\.\d{6}) \d+ (?P<source>[\w.-]+):\d+\] (?P<text>.*)", re.DOTALL
)
# As Triton writes it, and the models too.
_REQUEST = re.compile(r"\[request id: (?!<id_unknown>)([^\]]+)\] ?")
_MODEL = re.compile(r"(?:loading: |loaded '|failed to load ')([\w.-]+)")
# Characters of a message and of a request id, whose author may be a stranger.
_LONGEST, _LONGEST_ID = 16_384, 64
_UNSAFE = re.compile(r"[^\w.:/@+=-]", re.ASCII)


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class LogLine:
    """One entry.

    Attributes:
        message: May have line breaks.
        level: How serious it is.
        component: "launcher", "triton" or "model".
        model: Which one it is about, if known.
        request_id: Which request it is about, if known.
        time: When it was written.
    """

    message: str
    level: Level = "info"
    component: Literal["launcher", "triton", "model"] = "launcher"
    model: str | None = None
    request_id: str | None = None
    time: datetime = field(default_factory=_now)

    @classmethod
    def of_triton(cls, text: str) -> "LogLine":
        """An entry of Triton's log, or another line that one of its processes has printed."""
        entry = _ENTRY.match(text)
        if entry is None:
            return cls(text, "info", "triton")
        message = entry["text"]
        with contextlib.suppress(ValueError):
            message = str(json.loads(message))
        is_model = entry["source"].endswith(".py")
        found = re.match(r"([\w.-]+): ", message) if is_model else _MODEL.search(message)
        request = _REQUEST.search(message)
        level = _LEVELS[entry["level"]]
        return cls(
            message,
            "info" if level == "error" and BROKEN in message else level,
            "model" if is_model else "triton",
            found[1] if found else None,
            safe_id(request[1]) if request else None,
            _time(entry["time"]),
        )

    def to_json(self) -> str:
        """One line: `time`, `level`, `component` and `message`; `model` and `request_id` where they are known."""
        fields = {
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": self.level,
            "component": self.component,
            "model": self.model,
            "request_id": self.request_id,
            "message": self.message[:_LONGEST],
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})


class Incident(str):
    """A sentence of the launcher about something that went wrong, and that it acts on."""

    level: Level = "warning"


class Failure(Incident):
    """A sentence about something that the launcher cannot act on."""

    level: Level = "error"


def request_line(model: str, request_id: str, message: str) -> str:
    """A model's message about a request."""
    return f"{model}: [request id: {safe_id(request_id) or '<id_unknown>'}] {message}"


def safe_id(request_id: str) -> str:
    """A request id for a log: cut to 64 characters; others than ASCII letters, digits and . : / @ + = _ - become ?."""
    return _UNSAFE.sub("?", request_id[:_LONGEST_ID])


def _time(text: str) -> datetime:
    """Triton's month, day and time in UTC; the year is that which is next to now."""
    now = _now()
    with contextlib.suppress(ValueError):  # a line that only looks like one
        found = datetime.strptime(f"{now.year}{text}", "%Y%m%d %H:%M:%S.%f").replace(tzinfo=timezone.utc)
        return found.replace(year=now.year - 1) if found - now > timedelta(days=1) else found
    return now


class LogWriter(logging.Handler):
    """Writes the launcher's sentences and Triton's log to a stream; a handler of `logging` too.

    As JSON everything is written, as text the warnings and errors of the models: Triton's own are many on a machine
    without a GPU, and those that explain a failure are in the launcher's sentence about it.
    """

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        """Write to `stream`, by default standard error."""
        super().__init__()
        self._form = form
        self._models = frozenset[str]()
        self._stream = stream or sys.stderr
        self._writing = threading.Lock()

    @contextlib.contextmanager
    def installed(self) -> Iterator["LogWriter"]:
        """Within the block, what Python's libraries log is JSON too."""
        root = logging.getLogger()
        before = root.handlers
        if self._form == "json":
            root.handlers = [self]
        try:
            yield self
        finally:
            root.handlers = before

    def know(self, models: Iterable[str]) -> None:
        """The models that the launcher's sentences may be about."""
        self._models = frozenset(models)

    def report(self, message: str) -> None:
        """Write a sentence of the launcher."""
        level = message.level if isinstance(message, Incident) else "info"
        if self._form == "text":
            self._write(f"ocdserve: {message}")
        else:
            first = message.removeprefix("loading ").partition(" ")[0].rstrip(":")
            self._write(LogLine(message, level, model=first if first in self._models else None).to_json())

    def relay(self, text: str) -> None:
        """Write a line of Triton's log."""
        line = LogLine.of_triton(text)
        if self._form == "json":
            self._write(line.to_json())
        elif line.component == "model" and line.level in ("warning", "error"):
            self._write(f"ocdserve: {line.level}: {' '.join(line.message.split())}")

    def emit(self, record: logging.LogRecord) -> None:
        """Write what Python's libraries log in this process."""
        kind = Failure if record.levelno >= logging.ERROR else Incident if record.levelno >= logging.WARNING else str
        self.report(kind(record.getMessage()))

    def _write(self, text: str) -> None:
        # Nobody reads any more, or a disk is full: serving goes on.
        with self._writing, contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()
