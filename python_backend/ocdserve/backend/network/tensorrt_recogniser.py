# SPDX-License-Identifier: Apache-2.0
"""A recogniser's network as an engine of TensorRT or TensorRT-RTX."""

from typing import TYPE_CHECKING

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.fold_recogniser import CLASSES, LINES, PROBABILITIES
from ocdserve.backend.network.tensorrt import EngineNetwork, engine_of, listed
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.contract import InvalidInputError

if TYPE_CHECKING:
    from tensorrt import IExecutionContext


class TensorRtRecogniser(EngineNetwork):
    """A recogniser's engine; a `DeviceRecogniser`. It takes no more lines at once than a profile does."""

    source = LINES
    _counts: dict[tuple[int, int], int]

    def steps(self, stream: Stream, height: int, width: int) -> int:
        """See `DeviceRecogniser.steps`: the engine computes its outputs' shapes without executing."""
        if (height, width) not in self._counts:
            with self._device.current():
                context: IExecutionContext = self._shaped(stream, 1, height, width)
                self._counts[height, width] = int(context.get_tensor_shape(CLASSES)[1])
        return self._counts[height, width]

    def enqueue(
        self, stream: Stream, lines: Buffer, classes: Buffer, probabilities: Buffer, batch: int, height: int, width: int
    ) -> None:
        """See `DeviceRecogniser.enqueue`."""
        share = 4 * self.steps(stream, height, width)
        targets = [(CLASSES, classes, share), (PROBABILITIES, probabilities, share)]
        self._enqueue(stream, lines, targets, batch, height, width)

    def _parts(self, batch: int, height: int, width: int) -> list[int]:
        parts = super()._parts(batch, height, width)
        if len(parts) > 1:
            raise InvalidInputError(
                f"the engine of {self._name} takes at most {parts[0]} lines of {width} pixels at once; got {batch}"
            )
        return parts

    def _check_tensors(self) -> None:
        self._counts = {}
        trt, tensors = self._library.trt, self._tensors()
        if tensors != {LINES: trt.uint8, CLASSES: trt.int32, PROBABILITIES: trt.float32}:
            raise InvalidInputError(
                f"the engine of {self._name} must have the tensors {LINES} (uint8), {CLASSES} (int32) and "
                f"{PROBABILITIES} (float32); it has {listed(tensors)}. Build it with `ocdserve build`."
            )


def load_recogniser_engine(bundle: RecogniserBundle, options: RuntimeOptions, device: Device) -> TensorRtRecogniser:
    """The engine of a recogniser's bundle on a GPU.

    Raises:
        InvalidInputError: The bundle has no engine of the runtime that the options name.
        UnavailableError: The runtime is not installed, or does not load the engine here.
    """
    return TensorRtRecogniser(*engine_of(bundle, options), device, bundle.spec.name)
