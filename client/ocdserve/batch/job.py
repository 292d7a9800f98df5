# SPDX-License-Identifier: Apache-2.0
"""A job of a batch: its inputs, divided into shards, each of which becomes one file in the folder of the results.

The first run writes the inputs and the options to `_job.parquet`; later runs, and other machines, read them there, so
that a shard is the same inputs for all of them whatever has been added to the source since. A shard is done when its
file is there: no other state is kept, by no engine.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ocdserve.batch.storage import Folder
from ocdserve.batch.tables import list_file, read_list
from ocdserve.contract import InvalidInputError, check_count

__all__ = ["JOB_FILE", "Job", "Shard"]

JOB_FILE = "_job.parquet"


@dataclass(frozen=True)
class Shard:
    """Inputs that are detected together.

    Attributes:
        index: Position in the job, from 0.
        inputs: Names of images and files of several pages.
    """

    index: int
    inputs: tuple[str, ...]

    @cached_property
    def file(self) -> str:
        """The name of its file: the position, and a hash of the inputs."""
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, self.inputs))).hexdigest()
        return f"part-{self.index:06}-{digest[:12]}.parquet"


@dataclass(frozen=True)
class Job:
    """What is to be done, the same for every run that continues it.

    Attributes:
        inputs: Each once, in their order.
        shard_size: Inputs of a shard.
        provenance: What the results depend on: version, bundle, options; kept in each file.
    """

    inputs: tuple[str, ...]
    shard_size: int
    provenance: Mapping[str, Any]

    @classmethod
    def open(
        cls, folder: Folder, listing: Callable[[], Iterable[str]], shard_size: int, provenance: Mapping[str, Any]
    ) -> tuple["Job", bool]:
        """Begin a job, or continue the one that the folder holds.

        Args:
            folder: Folder of the results.
            listing: The inputs; called only where there is no job yet.
            shard_size: Inputs of a shard.
            provenance: What the results depend on, in values of JSON.

        Returns:
            The job, and whether it was there.

        Raises:
            InvalidInputError: There is no input, the folder holds a job of other options, or other files.
        """
        check_count("shard_size", shard_size)
        asked = dict(provenance) | {"shard_size": shard_size}
        names = folder.names()
        was_there = JOB_FILE in names
        if not was_there:
            if others := sorted(name for name in names if not name.startswith((".", "_"))):
                raise InvalidInputError(
                    f"the folder {folder.url!r} holds no job of `ocdserve batch`, but other files, such as "
                    f"{others[0]}; name a new folder"
                )
            inputs = tuple(dict.fromkeys(listing()))
            if not inputs:
                raise InvalidInputError("there is no input; name a folder, a pattern or a list with images")
            folder.put(JOB_FILE, list_file(inputs, asked))
        # Another machine may have begun the same job in between: its list is the one that counts.
        listed, begun = read_list(folder.read(JOB_FILE), f"{folder.url}/{JOB_FILE}")
        _check_same(begun, json.loads(json.dumps(asked)), folder)
        return cls(tuple(listed), shard_size, asked), was_there

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards."""
        size = self.shard_size
        return tuple(
            Shard(index, self.inputs[start : start + size])
            for index, start in enumerate(range(0, len(self.inputs), size))
        )

    def left(self, folder: Folder) -> list[Shard]:
        """The shards without a file."""
        names = folder.names()
        return [shard for shard in self.shards if shard.file not in names]


def _check_same(begun: Mapping[str, Any], asked: Mapping[str, Any], folder: Folder) -> None:
    for name in sorted({*begun, *asked}):
        if begun.get(name) != asked.get(name):
            raise InvalidInputError(
                f"the job in {folder.url!r} was begun with {name} {json.dumps(begun.get(name))}, and now it is "
                f"{json.dumps(asked.get(name))}; continue it with the same, or name a new folder"
            )
