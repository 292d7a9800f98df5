# SPDX-License-Identifier: Apache-2.0
"""Loading and calling the compiled library."""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu.compile import LIBRARY, digest
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.spec.rows import GROW_ON_HOST, IMAGE, LARGEST_SIDE, ROW, image_record

_logger = logging.getLogger(__name__)

REMEDY = "run: python -m ocdserve.backend.kernels.cpu (needs a C++ compiler, or: pip install ziglang)"


class Library:
    """The compiled library. Thread-safe; calls release the interpreter's lock.

    Args:
        path: The shared library.

    Raises:
        OSError: It cannot be loaded here.
        AttributeError: It lacks a function.
    """

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        self._postprocess = loaded.ocdserve_postprocess
        self._postprocess.restype = ctypes.c_int
        self._postprocess.argtypes = (
            ctypes.c_void_p,
            ctypes.c_longlong,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
        )
        self._rectify = loaded.ocdserve_rectify
        self._rectify.restype = None
        self._rectify.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self._best_steps = loaded.ocdserve_best_steps
        self._best_steps.restype = None
        self._best_steps.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_int,) * 4,
            ctypes.c_float,
            ctypes.c_void_p,
        )

    def rows(self, probability: NDArray[np.uint8], frame: Frame, params: PostprocessParams) -> NDArray[Any] | None:
        """Find the detections of a map, best first.

        Args:
            probability: (h, w).
            frame: Position of the source image in the map.
            params: Of mode `default`; polygons are not made.

        Returns:
            `ROW` (N,), N at most `max_candidates` unless some still have to be grown by `grow_quads`, or scored for
            polygons; None where the map is larger than the library takes, or memory does not suffice.
        """
        height, width = probability.shape
        if max(height, width) > LARGEST_SIDE:
            return None
        if probability.strides[1] != 1 or probability.strides[0] < 0:
            probability = np.ascontiguousarray(probability)
        image = np.array(image_record(frame, params), IMAGE)
        capacity = params.max_candidates
        while True:
            rows = np.empty(capacity, ROW)
            count: int = self._postprocess(
                probability.ctypes.data, probability.strides[0], image.ctypes.data, rows.ctypes.data, capacity
            )
            if count < 0:
                return None
            rows = rows[:count]
            # Rows that collapse when they are grown make room for others; those for polygons have other scores.
            if count <= capacity or not (params.polygons or (rows["state"] == GROW_ON_HOST).any()):
                return rows
            capacity = count

    def rectify(self, line: NDArray[Any], target: NDArray[np.uint8]) -> None:
        """Write a text line's pixels.

        Args:
            line: `LINE` of `ocdserve.results.reading.lines`, with the address of the image's pixels.
            target: uint8 (height, width, 3), the line's size, contiguous; written.
        """
        self._rectify(line.ctypes.data, target.ctypes.data)

    def best_steps(
        self, probabilities: NDArray[np.float32], blank: int, space: tuple[int, float] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The best class of each step and its probability, (T,) each; see `ocdserve.backend.stages.ctc.best_steps`.

        Args:
            probabilities: float32 (T, classes), contiguous and writable, T at least 1.
            blank: Class of the blank.
            space: `RecogniserSpec.space`.
        """
        steps, classes = probabilities.shape
        found = np.empty((2, steps), np.int32)
        index, threshold = space or (-1, 0.0)
        # Where the network has displaced NumPy's and ctypes' code from the processor's caches, this is the cheapest way
        # to an address.
        self._best_steps(
            ctypes.byref(ctypes.c_int.from_buffer(probabilities.data)),
            *(steps, classes, blank, index, threshold),
            ctypes.byref(ctypes.c_int.from_buffer(found.data)),
        )
        return found[0], found[1].view(np.float32)


def examine(path: Path | None = None) -> str | None:
    """Why a library (None: the installed one) cannot be used; None if it can."""
    path = path or LIBRARY
    if not path.exists():
        return "it is missing"
    try:
        # Read from the file: a library that was loaded once stays loaded, whatever replaces its file.
        if digest().encode() not in path.read_bytes():
            return "it was compiled from other sources"
        Library(path)
    except (OSError, AttributeError) as error:
        return f"it cannot be loaded: {error}"
    return None


@functools.cache
def load() -> Library | None:
    """The library that was compiled with this installation; None, with one log message, if it cannot be used."""
    problem = examine()
    if problem is None:
        return Library(LIBRARY)
    if LIBRARY.exists():
        _logger.warning("post-processing uses NumPy, not %s: %s; %s", LIBRARY.name, problem, REMEDY)
    return None
