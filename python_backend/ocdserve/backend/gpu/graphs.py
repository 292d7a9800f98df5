# SPDX-License-Identifier: Apache-2.0
"""Work on a stream that is recorded as a CUDA graph once it was done often enough."""

import logging
import threading
from collections.abc import Callable

from ocdserve.backend.device.protocol import Device, DeviceMemoryError, Graph, Stream
from ocdserve.backend.network.protocols import DeviceNetwork, DeviceRecogniser
from ocdserve.contract import UnavailableError

_logger = logging.getLogger(__name__)

# Batch, height and width in pixels.
Shape = tuple[int, int, int]
# Shapes whose recording may fail before no more are tried.
_MOST_REFUSED = 8
# Batches of a shape that are queued call by call before it is recorded: in the first a library prepares for the shape,
# in the second it may still allocate memory, which a recording forbids.
_BATCHES_BEFORE = 2


class GraphSwitch:
    """Which shapes of a network are recorded as graphs; shared by all its slots. Each refusal is logged once.

    Args:
        network: The network.
    """

    def __init__(self, network: DeviceNetwork | DeviceRecogniser) -> None:
        self._network = network
        self._refused: set[Shape] = set()
        self._on = True
        self._lock = threading.Lock()

    def allows(self, shape: Shape) -> bool:
        """Whether batches of a shape, for which the network was executed before, may be recorded."""
        with self._lock:
            if self._on and (reason := self._network.unrecordable()):
                self._on = False
                _logger.warning(
                    "the network is not recorded in CUDA graphs, its calls are queued each time: %s", reason
                )
            return self._on and shape not in self._refused

    def refuse(self, shape: Shape, reason: UnavailableError) -> None:
        """Queue batches of a shape call by call from now on; after too many such shapes, all that are not recorded."""
        with self._lock:
            if not self._on or shape in self._refused:
                return
            self._refused.add(shape)
            self._on = len(self._refused) < _MOST_REFUSED
        _logger.warning(
            "a batch of %d x %d x %d pixels cannot be recorded in a CUDA graph, its calls are queued each time%s: %s",
            *shape,
            "" if self._on else ", as are those of all further shapes",
            reason,
        )


class RecordedWork:
    """Work for batches of one shape.

    The first two batches are queued call by call, and the work is recorded right behind the second one, not before the
    third: ONNX Runtime plans convolutions anew whenever a session's shape changes, which a recording must not hold.

    Args:
        device: The GPU.
        stream: Where the work is queued.
        shape: Of the batches.
    """

    def __init__(self, device: Device, stream: Stream, shape: Shape) -> None:
        self._device = device
        self._stream = stream
        self._shape = shape
        self._graph: Graph | None = None
        self._recorded_version = 0
        self._queued = 0

    def run(self, enqueue: Callable[[], None], version: int = 0) -> None:
        """Queue the work.

        Args:
            enqueue: Queues it call by call.
            version: Of the memory that it uses; if it has changed, the work is queued call by call again.
        """
        if version != self._recorded_version:
            self.close()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            enqueue()
            self._queued += 1

    def record(self, enqueue: Callable[[], None], switch: GraphSwitch, version: Callable[[], int] = lambda: 0) -> None:
        """Record what `run` has queued call by call, once that was done often enough."""
        if self._graph is not None or self._queued < _BATCHES_BEFORE or not switch.allows(self._shape):
            return
        try:
            with self._stream.capture() as capture:
                enqueue()
            self._graph = capture.graph
            self._recorded_version = version()
        except DeviceMemoryError:
            # Not the network's fault: recording is tried again with more memory.
            raise
        except UnavailableError as error:
            if self._device.failed:
                raise
            switch.refuse(self._shape, error)

    def close(self) -> None:
        """Release the graph; calling it again does nothing."""
        if self._graph is not None:
            self._graph.close()
        self._graph = None
