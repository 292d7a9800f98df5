# SPDX-License-Identifier: Apache-2.0
"""Executing an engine on the GPU of this machine, one image at a time, for the accuracy gate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT
from ocdserve.builder.engine.options import EngineRuntime
from ocdserve.builder.engine.targets import load, present_gpu
from ocdserve.contract import UnavailableError

# Runs of which layer times are the mean, after one that does not count.
_TIMED_RUNS = 10


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
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        levels = [np.asarray(self._runner.infer({INPUT: image[None]})[OUTPUT])[0] for image in images]
        return [(level / np.float32(255)).astype(np.float32) for level in levels]

    def layer_times(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """Milliseconds of each layer on the GPU, by its name in the engine.

        Args:
            image: uint8 (h, w, 3), of the size that is asked for.
        """
        self.infer([image])
        profiler = _profiler(load("tensorrt").trt)
        self._runner.context.profiler = profiler
        for _ in range(_TIMED_RUNS):
            self.infer([image])
        return {name: total / _TIMED_RUNS for name, total in profiler.totals_ms.items()}


def _profiler(trt: Any) -> Any:
    base: Any = trt.IProfiler

    class Totals(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.totals_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals_ms[layer_name] = self.totals_ms.get(layer_name, 0.0) + ms

    return Totals()
