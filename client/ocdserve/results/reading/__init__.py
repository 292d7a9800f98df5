# SPDX-License-Identifier: Apache-2.0
"""`Reading`: detections with their texts. NumPy only; methods import what needs more."""

from ocdserve.results.reading.outcome import ReadOutcome
from ocdserve.results.reading.reading import Line, Reading, Word

__all__ = ["Line", "ReadOutcome", "Reading", "Word"]
