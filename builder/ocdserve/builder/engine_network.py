# SPDX-License-Identifier: Apache-2.0
"""Executing an engine on the GPU of this machine, one image at a time, for the accuracy gate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.network.graph import INPUT, OUTPUT
from ocdserve.builder.engine_options import EngineRuntime
from ocdserve.builder.engine_runtime import present_gpu
from ocdserve.contract import UnavailableError


def can_execute(runtime: EngineRuntime) -> bool:
    """Whether engines of the runtime can be executed here."""
    try:
        present_gpu()
    except UnavailableError:
        return False
    return runtime == "tensorrt"


class EngineNetwork:
    """An engine of a folded network, executed by polygraphy; a `Network` with float32 maps.

    Args:
        plan: Serialised engine.
        runtime: What built it.

    Raises:
        UnavailableError: There is no GPU, or the runtime is not one that polygraphy executes.
    """

    def __init__(self, plan: bytes, runtime: EngineRuntime) -> None:
        if not can_execute(runtime):
            raise UnavailableError(f"engines of {runtime} cannot be executed on this machine")
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        self._runner = TrtRunner(EngineFromBytes(plan))
        self._runner.activate()

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.Network.infer`."""
        levels = [np.asarray(self._runner.infer({INPUT: image[None]})[OUTPUT])[0] for image in images]
        return [(level / np.float32(255)).astype(np.float32) for level in levels]
