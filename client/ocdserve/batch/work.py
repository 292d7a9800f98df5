# SPDX-License-Identifier: Apache-2.0
"""The work of a job, a shard at a time: what every engine runs; and the engine of one process."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ocdserve.batch.detect import DetectBatch
from ocdserve.batch.job import Shard
from ocdserve.batch.storage import Folder
from ocdserve.batch.tables import parquet_of, schema_of

__all__ = ["MOST_TRIES", "Step", "Work", "in_this_process"]

# Attempts at a shard whose storage fails, or whose worker dies.
MOST_TRIES = 3
# Seconds between the steps that are reported within a shard.
_STEP_S = 1.0


@dataclass(frozen=True)
class Step:
    """How far a shard is; counts are from its beginning.

    Attributes:
        shard: The shard.
        inputs: Inputs done.
        images: Rows, that is images and pages, among them those with an error.
        boxes: Detections.
        errors: Images that could not be read.
        is_done: Whether its file is written.
        failure: Why it is given up.
    """

    shard: Shard
    inputs: int = 0
    images: int = 0
    boxes: int = 0
    errors: int = 0
    is_done: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class Work:
    """What is done with a shard; picklable.

    Attributes:
        folder: Folder of the results.
        detect: Makes rows of inputs.
        provenance: Kept in each file.
    """

    folder: Folder
    detect: DetectBatch
    provenance: Mapping[str, Any]

    def do(self, shard: Shard) -> Iterator[Step]:
        """Detect in the inputs of a shard and write its file; about a step per second, the last of which is done.

        Raises:
            OcdserveError: The detector cannot be loaded, or fails.
            OSError: Storage fails.
        """
        rows: list[Mapping[str, Any]] = []
        names, boxes, errors = set[str](), 0, 0
        reported = time.monotonic()
        for row in self.detect.rows((name, None) for name in shard.inputs):
            # A further image means that the one before is done.
            if row["image"] not in names and (now := time.monotonic()) - reported >= _STEP_S:
                reported = now
                yield Step(shard, len(names), len(rows), boxes, errors)
            rows.append(row)
            names.add(row["image"])
            boxes += len(row["scores"] or ())
            errors += row["error"] is not None
        schema = schema_of(dict(self.provenance) | {"shard": shard.index})
        self.folder.put(shard.file, parquet_of(rows, schema))
        yield Step(shard, len(shard.inputs), len(rows), boxes, errors, is_done=True)


def in_this_process(work: Work, shards: Iterable[Shard]) -> Generator[Step, None, None]:
    """Do the shards one after the other; those whose storage keeps failing are given up.

    Raises:
        OcdserveError: The detector cannot be loaded, or fails.
    """
    for shard in shards:
        for left in reversed(range(MOST_TRIES)):
            try:
                yield from work.do(shard)
                break
            except OSError as error:
                if not left:
                    yield Step(shard, failure=f"{type(error).__name__}: {error}")
