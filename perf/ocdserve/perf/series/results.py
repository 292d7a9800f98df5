# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark, raw samples with their environment, and the file that holds them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.measurement import Measurement

SCHEMA = "ocdserve.bench"
# 1: rows and samples of three sections. 2: series of samples with factors and facts.
SCHEMA_VERSION = 2

# `running`: it was cut off. `stopped`: it ran out of time.
State = Literal["running", "complete", "stopped", "failed", "not available"]

_T = TypeVar("_T")
_SOURCE = "give a file that `ocdserve bench --json` wrote"


@dataclass
class Part:
    """A part of a run with its own process and time limit: how it ended, and its findings besides series.

    Attributes:
        section: Section of its series.
        state: How it ended.
        reason: Why it is not complete.
        seconds: Its duration.
        findings: Wrong answers, errors in logs and the like, one sentence each.
        absences: What was not measured, and why.
        log: End of its process' output.
    """

    section: str
    state: State = "running"
    reason: str = ""
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)
    absences: dict[str, str] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True)
class Results:
    """One run of the benchmark.

    Attributes:
        created: When it ended, ISO 8601 in UTC.
        environment: Where it ran.
        measurements: All series, section by section, with unique keys.
        command: The command line without the program's name; may be empty.
        parts: The parts of the run, if it was made in parts.

    Raises:
        InvalidInputError: There is neither a measurement nor a part, or two measurements have the same key.
    """

    created: str
    environment: Environment
    measurements: tuple[Measurement, ...]
    command: str = ""
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if not self.measurements and not self.parts:
            raise InvalidInputError("results must hold at least one measurement; got none")
        keys = set()
        for measurement in self.measurements:
            if measurement.key in keys:
                raise InvalidInputError(f"results must hold each series once; {measurement.key} is there twice")
            keys.add(measurement.key)

    @classmethod
    def now(
        cls,
        environment: Environment,
        measurements: tuple[Measurement, ...],
        command: str = "",
        parts: tuple[Part, ...] = (),
    ) -> "Results":
        """Results of a run that has just ended; `environment` was read when it began."""
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(created, environment.ended(), measurements, command, parts)

    def section(self, name: str) -> tuple[Measurement, ...]:
        """The series of one section, in order."""
        return tuple(measurement for measurement in self.measurements if measurement.section == name)

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in order; those of parts first."""
        of_parts = [part.section for part in self.parts]
        return tuple(dict.fromkeys([*of_parts, *(measurement.section for measurement in self.measurements)]))

    def part(self, section: str) -> Part | None:
        """The part that measured a section, if any."""
        return next((part for part in self.parts if part.section == section), None)


def merged(runs: Sequence[Results]) -> Results:
    """Merge several runs on one machine.

    The load average before is that of the busiest run; the commit is None if the runs' commits differ.

    Raises:
        InvalidInputError: There is no run, the environments differ, or two runs have a series in common.
    """
    if not runs:
        raise InvalidInputError("runs to merge must be at least one; got none")
    first, last = runs[0].environment, max(runs, key=lambda run: run.created)
    for run in runs[1:]:
        differences = "; ".join(first.differences(run.environment))
        if differences:
            raise InvalidInputError(
                f"the runs were made in different environments ({differences}); show each by itself"
            )
    busiest = max((run.environment.load_average for run in runs), key=lambda load: load[0])
    commits = {run.environment.commit for run in runs}
    return Results(
        created=last.created,
        environment=replace(
            first,
            load_average=busiest,
            load_average_after=last.environment.load_average_after,
            commit=first.commit if len(commits) == 1 else None,
        ),
        measurements=tuple(measurement for run in runs for measurement in run.measurements),
        command=" && ocdserve ".join(run.command for run in runs if run.command),
        parts=tuple(part for run in runs for part in run.parts),
    )


def to_json(results: Results) -> dict[str, Any]:
    """The document as JSON values."""
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(results)}


def save_results(results: Results, path: Path, overwrite: bool = False) -> None:
    """Write results to a file.

    Args:
        results: The results.
        path: The file.
        overwrite: Replace a file of a previous state of the same run.

    Raises:
        InvalidInputError: The file exists and must not be overwritten, or cannot be written.
    """
    text = json.dumps(to_json(results), allow_nan=False) + "\n"
    try:
        if overwrite:
            replace_file(path, text)
        else:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise InvalidInputError(f"{path} exists, and results are never overwritten; name another file") from error
    except OSError as error:
        raise InvalidInputError(f"cannot write the results to {str(path)!r}: {error.strerror}") from error


def replace_file(path: Path, text: str) -> None:
    """Write a file atomically: at any time it has its old or its new content."""
    # Here, because reading results needs no backend.
    from ocdserve.backend.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def load_results(path: Path) -> Results:
    """Read a file of results.

    Raises:
        InvalidInputError: It cannot be read, is not such a file or is of another version, or a value is not valid.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read the results {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON ({error}); {_SOURCE}") from error
    version = _version(document)
    if version is None:
        raise InvalidInputError(f"{path} holds no results of `ocdserve bench`; {_SOURCE}")
    if version != SCHEMA_VERSION:
        raise InvalidInputError(
            f"{path} has version {version} of the results' format, and this ocdserve reads version {SCHEMA_VERSION}; "
            "measure again, or use the ocdserve that wrote it"
        )
    return _checked(partial(_results, document), str(path))


def _version(document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    if document.get("schema") == SCHEMA:
        return document.get("schema_version", "unknown")
    # Version 1 had no name of its schema.
    return 1 if document.get("format_version") == 1 and "kind" not in document and "environment" in document else None


def _checked(build: Callable[[], _T], what: str) -> _T:
    try:
        return build()
    except InvalidInputError as error:
        raise InvalidInputError(f"{what}: {error}") from error
    except KeyError as error:
        raise InvalidInputError(f"{what}: the field {error} is missing; {_SOURCE}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"{what}: a field has a value of the wrong kind ({error}); {_SOURCE}") from error


def _results(document: Mapping[str, Any]) -> Results:
    return Results(
        created=str(document["created"]),
        environment=_environment(document["environment"]),
        measurements=tuple(
            _checked(partial(_from_json, Measurement, entry), f"measurement {index}")
            for index, entry in enumerate(document["measurements"])
        ),
        command=str(document["command"]),
        # Optional, as the GPU of the environment: version 2 began without them.
        parts=tuple(Part(**entry) for entry in document.get("parts", ())),
    )


def _environment(values: Mapping[str, Any]) -> Environment:
    after, gpu = values["load_average_after"], values.get("gpu")
    return _from_json(
        Environment,
        {
            **values,
            "cores": int(values["cores"]),
            "memory_gib": float(values["memory_gib"]),
            "versions": dict(values["versions"]),
            "flags": tuple(map(str, values["flags"])),
            "load_average": _load(values["load_average"]),
            "load_average_after": None if after is None else _load(after),
            "gpu": None if gpu is None else Gpu(**gpu),
        },
    )


def _from_json(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A dataclass from the values of all its fields, with lists as tuples; other values are ignored."""
    given = {one.name: values[one.name] for one in fields(kind)}  # type: ignore[arg-type]
    for one in fields(kind):  # type: ignore[arg-type]
        if one.type is str and not isinstance(given[one.name], str):
            raise TypeError(f"{one.name} must be a text; got {given[one.name]!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _load(values: Any) -> tuple[float, float, float]:
    minute, five, fifteen = values
    return float(minute), float(five), float(fifteen)
