# SPDX-License-Identifier: Apache-2.0
"""Tuning of the served models for a machine: threads, instances and queues, kept in a file."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ocdserve.backend.files import write_atomically
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import InvalidInputError

_SCHEMA = "ocdserve.tuning"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Tuning:
    """What `ocdserve bench capacity` finds for a machine, and `ocdserve publish` and `serve` use.

    Attributes:
        runtime: Runtime of the network; None: the fastest that the server has.
        threads: Cores for the network of one instance, on a GPU for decoding; None: all that the server has.
        streams: Images in the network of one instance at the same time; on a GPU batches.
        instances: Processes of each model that holds the network; on GPUs on each of them. Each has the network in
            memory, and `threads` threads.
        queue_size: Requests that may wait for each model; further ones are answered with UNAVAILABLE.
        queue_delay_us: How long a request waits for others to share its batch, in microseconds.
        queue_time_ms: How long a request may take when there is a queue, in milliseconds; one that would take longer is
            answered with UNAVAILABLE.

    Raises:
        InvalidInputError: A field is out of its range.
    """

    runtime: str | None = None
    threads: int | None = None
    streams: int = 1
    instances: int = 1
    queue_size: int = 256
    queue_delay_us: int = 0
    queue_time_ms: int = 1000

    def __post_init__(self) -> None:
        RuntimeOptions(self.runtime, self.threads, self.streams)
        for name, least, most in (
            ("instances", 1, 64),
            ("queue_size", 1, 100_000),
            ("queue_delay_us", 0, 1_000_000),
            ("queue_time_ms", 1, 3_600_000),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InvalidInputError(f"{name} must be a whole number from {least} to {most}; got {value!r}")

    def save(self, path: Path) -> None:
        """Write the file."""
        document = {"schema": _SCHEMA, "schema_version": _SCHEMA_VERSION, **asdict(self)}
        write_atomically(path, f"{json.dumps(document, indent=1)}\n".encode())

    @classmethod
    def load(cls, path: Path) -> "Tuning":
        """Read a file that `save` wrote.

        Raises:
            InvalidInputError: It cannot be read, is something else, or a value is out of its range.
        """
        try:
            document = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InvalidInputError(f"cannot read the tuning file {str(path)!r}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path} is not a tuning file: it is not JSON ({error})") from error
        if not isinstance(document, dict) or document.pop("schema", None) != _SCHEMA:
            raise InvalidInputError(f"{path} is not a tuning file; `ocdserve bench capacity` writes one")
        version = document.pop("schema_version", None)
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(document) - set(names))
        if version != _SCHEMA_VERSION or unknown:
            strange = f"the field {unknown[0]!r}" if unknown else f"schema_version {version!r}"
            raise InvalidInputError(f"{path} has {strange}; this release knows version {_SCHEMA_VERSION}: {names}")
        for name, value in document.items():
            if name != "runtime" and type(value) is not int and not (name == "threads" and value is None):
                raise InvalidInputError(f"{path}: {name} must be a whole number; got {value!r}")
        return cls(**document)
