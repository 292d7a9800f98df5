# SPDX-License-Identifier: Apache-2.0
"""Our own detectors, with the interface of the competitors."""

from typing import ClassVar

from ocdserve.backend import Detector
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.competitor import Competitor, Detect


class Ours(Competitor):
    """The default detector in this process."""

    name: ClassVar[str] = OURS

    def _load(self) -> Detect:
        detector = Detector.load(threads=self.threads)
        return lambda encoded: detector.detect(encoded).quads


class OursFast(Competitor):
    """The built-in detector `fast` in this process: the same network on less than half the pixels."""

    name: ClassVar[str] = f"{OURS}-fast"

    def _load(self) -> Detect:
        detector = Detector.load("fast", threads=self.threads)
        return lambda encoded: detector.detect(encoded).quads
