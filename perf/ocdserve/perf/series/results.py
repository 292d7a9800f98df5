# SPDX-License-Identifier: Apache-2.0
"""The file of a benchmark's results: raw samples and where they come from, written once and never changed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement

__all__ = ["SCHEMA", "SCHEMA_VERSION", "Results", "load_results", "merged", "save_results", "to_json"]

SCHEMA = "ocdserve.bench"
# 1: rows and samples of three sections. 2: series of samples with factors and facts.
SCHEMA_VERSION = 2

_T = TypeVar("_T")
_SOURCE = "give a file that `ocdserve bench --json` wrote"


@dataclass(frozen=True)
class Results:
    """One run of the benchmark.

    Attributes:
        created: When it ended, ISO 8601 in UTC.
        environment: Where it ran.
        measurements: All series, section by section; no two have the same key.
        command: The command line, without the program's name; empty where there was none.

    Raises:
        InvalidInputError: There is no measurement, or two have the same key.
    """

    created: str
    environment: Environment
    measurements: tuple[Measurement, ...]
    command: str = ""

    def __post_init__(self) -> None:
        if not self.measurements:
            raise InvalidInputError("results must hold at least one measurement; got none")
        keys = set()
        for measurement in self.measurements:
            if measurement.key in keys:
                raise InvalidInputError(f"results must hold each series once; {measurement.key} is there twice")
            keys.add(measurement.key)

    @classmethod
    def now(cls, environment: Environment, measurements: tuple[Measurement, ...], command: str = "") -> "Results":
        """Results of a run that has just ended; `environment` is of its beginning."""
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(created, environment.ended(), measurements, command)

    def section(self, name: str) -> tuple[Measurement, ...]:
        """The series of one section, in their order."""
        return tuple(measurement for measurement in self.measurements if measurement.section == name)

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in their order."""
        return tuple(dict.fromkeys(measurement.section for measurement in self.measurements))


def merged(runs: Sequence[Results]) -> Results:
    """Several runs on one machine as one, to be shown together.

    The load average before is that of the busiest run, the commit that of all runs, or none where they differ.

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
    )


def to_json(results: Results) -> dict[str, Any]:
    """The document as JSON values."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": results.created,
        "command": results.command,
        "environment": asdict(results.environment),
        "measurements": [asdict(measurement) for measurement in results.measurements],
    }


def save_results(results: Results, path: Path) -> None:
    """Write results to a new file.

    Raises:
        InvalidInputError: The file exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(to_json(results), file, allow_nan=False)
            file.write("\n")
    except FileExistsError as error:
        raise InvalidInputError(f"{path} exists, and results are never overwritten; name another file") from error
    except OSError as error:
        raise InvalidInputError(f"cannot write the results to {str(path)!r}: {error.strerror}") from error


def load_results(path: Path) -> Results:
    """Read a file of results.

    Raises:
        InvalidInputError: It cannot be read, is not such a file or of another version, or a value is not valid.
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
            _checked(partial(_measurement, entry), f"measurement {index}")
            for index, entry in enumerate(document["measurements"])
        ),
        command=str(document["command"]),
    )


def _environment(fields: Mapping[str, Any]) -> Environment:
    after = fields["load_average_after"]
    return Environment(
        cpu=str(fields["cpu"]),
        cores=int(fields["cores"]),
        memory_gib=float(fields["memory_gib"]),
        system=str(fields["system"]),
        python=str(fields["python"]),
        versions={str(name): str(version) for name, version in fields["versions"].items()},
        load_average=_load(fields["load_average"]),
        load_average_after=None if after is None else _load(after),
        flags=tuple(str(flag) for flag in fields["flags"]),
        governor=fields["governor"],
        cpu_quota=fields["cpu_quota"],
        commit=fields["commit"],
    )


def _load(values: Any) -> tuple[float, float, float]:
    minute, five, fifteen = values
    return float(minute), float(five), float(fifteen)


def _measurement(fields: Mapping[str, Any]) -> Measurement:
    return Measurement(
        section=str(fields["section"]),
        subject=str(fields["subject"]),
        group=str(fields["group"]),
        unit=str(fields["unit"]),
        samples=tuple(float(value) for value in fields["samples"]),
        cases=tuple(str(case) for case in fields["cases"]),
        factors=dict(fields["factors"]),
        facts=dict(fields["facts"]),
        baseline=str(fields["baseline"]),
    )
