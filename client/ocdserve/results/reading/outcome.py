# SPDX-License-Identifier: Apache-2.0
"""The outcome of one of many images that are read."""

from dataclasses import dataclass
from typing import TypeVar, cast

from ocdserve.results.many import Outcome
from ocdserve.results.reading.reading import Reading

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class ReadOutcome(Outcome[Item]):
    """Outcome of one image of `read_many`: that of `detect_many`, whose detections are a `Reading`."""

    detections: Reading | None = None

    def result(self) -> Reading:
        """The reading.

        Raises:
            OcdserveError: The image failed; this is `error`.
        """
        return cast(Reading, super().result())
