# SPDX-License-Identifier: Apache-2.0
"""The network in OpenVINO."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
import openvino
from numpy.typing import NDArray

from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.device.freed_memory import return_freed_memory
from ocdserve.backend.network.options import MapType, RuntimeOptions
from ocdserve.backend.network.resource_pool import ResourcePool
from ocdserve.backend.network.rewrite.fold import REWRITES, folded_network
from ocdserve.backend.network.rewrite.fold_recogniser import folded_recogniser
from ocdserve.backend.spec.bundle import AnyBundle, Bundle, RecogniserBundle
from ocdserve.backend.stages.ctc import Steps, best_steps
from ocdserve.contract import InvalidInputError, UnavailableError

# OpenVINO keeps about 5 MB for each network size that it has seen: see docs/decisions/0045.
_MOST_SIZES = 60
# And about 2 MB for each width of a line, of which the default widths are 55: see docs/decisions/0080.
_MOST_WIDTHS = 60

_T = TypeVar("_T")


class OpenVinoModel:
    """A network, compiled for one shape or for all.

    OpenVINO keeps what it has prepared for each shape until the compiled network is deleted. After `most_sizes` shapes
    the network is compiled again before the next new one: other requests wait for it, and results stay the same.

    Args:
        compile_model: Compiles the network.
        streams: Arrays in the network at the same time.
        most_sizes: Shapes that are kept prepared.
    """

    def __init__(self, compile_model: Callable[[], Any], streams: int, most_sizes: int) -> None:
        # Made by `load_network` in another thread than the main one, and used in threads of its own: OpenVINO replaces
        # the signal stack of the calling thread and, when one of several networks is deleted, leaves a freed stack in
        # place. In the main thread the next Ctrl-C would be a segmentation fault, since Python's handlers run on that
        # stack.
        self._process = bind_to_process(self)
        self._pool = ThreadPoolExecutor(max_workers=streams)
        self._streams = streams
        self._most_sizes = most_sizes
        self._compile = compile_model
        self._lock = threading.Lock()
        self._sizes: set[tuple[int, ...]] = set()
        self._requests: ResourcePool[Any] | None = self._compiled()

    def infer(self, arrays: Sequence[NDArray[Any]], read: Callable[[NDArray[Any]], _T]) -> list[_T]:
        """What `read` makes of the network's output for each array, in the order of the arrays.

        Args:
            arrays: One input each, without the batch's axis.
            read: Called with the output, without the batch's axis: memory of OpenVINO, valid during the call.

        Raises:
            UnavailableError: OpenVINO fails.
        """
        check_process(self._process)
        # One task per stream: as many as lines of text would wake this thread for each, 1.5 % of their time.
        left = enumerate(arrays)

        def work() -> list[tuple[int, _T]]:
            return [(index, self._infer_one(array, read)) for index, array in left]

        tasks = [self._pool.submit(work) for _ in range(min(self._streams, len(arrays)))]
        try:
            found = dict(pair for task in tasks for pair in task.result())
        finally:
            # After an error or an interrupt nothing more is begun.
            deque(left, maxlen=0)
        return [found[index] for index in range(len(arrays))]

    def _infer_one(self, array: NDArray[Any], read: Callable[[NDArray[Any]], _T]) -> _T:
        # Without context managers: what Python does between two lines of text is dear, since the network has displaced
        # it from the processor's caches.
        requests, request, is_new = self._take(array.shape)
        try:
            try:
                outputs = request.infer({0: array[None]}, share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise UnavailableError(f"OpenVINO cannot execute the network: {_last_line(error)}") from error
            return read(outputs.to_tuple()[0][0])
        finally:
            if is_new:
                # OpenVINO frees tensors when others of another size replace them.
                return_freed_memory()
            requests.give(request)

    def _take(self, size: tuple[int, ...]) -> tuple[ResourcePool[Any], Any, bool]:
        """A request for an image of this size, to be given back to its pool, and whether the size is new."""
        with self._lock:
            is_new = size not in self._sizes
            if is_new and len(self._sizes) >= self._most_sizes and self._requests:
                # Waits for those in use. OpenVINO deletes the network with its last request.
                self._requests.drain()
                self._requests = None
                self._sizes.clear()
            self._requests = self._requests or self._compiled()
            self._sizes.add(size)
            return self._requests, self._requests.take(), is_new

    def _compiled(self) -> ResourcePool[Any]:
        """A request for each stream, of a newly compiled network."""
        return ResourcePool(self._compile().create_infer_request, self._streams)


class OpenVinoNetwork:
    """Compiled for one shape where the resize policy has only one, else for all shapes."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        resize = bundle.spec.resize
        # OpenVINO rounds to levels without vector instructions: 0.5 % of the default network's time.
        rounds = options.map_type == "uint8" and not bundle.spec.network.folded
        computed: MapType = "float32" if rounds else options.map_type
        self._read: Callable[[NDArray[Any]], NDArray[Any]] = _levels if rounds else np.copy
        content = folded_network(
            bundle.model_path, bundle.spec.network, computed, options.pixel_type, REWRITES["openvino"]
        )
        shape = [1, resize.height, resize.width, 3] if resize.has_one_size else [1, -1, -1, 3]
        self._model = OpenVinoModel(compiler(bundle, content, shape, options), options.streams, _MOST_SIZES)

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        return self._model.infer(images, self._read)


class OpenVinoRecogniser:
    """Compiled for all widths; one line at a time per stream."""

    def __init__(self, bundle: RecogniserBundle, options: RuntimeOptions) -> None:
        spec = bundle.spec
        content = folded_recogniser(bundle.model_path, spec.network)
        compile_model = compiler(bundle, content, [1, spec.height, -1, 3], options)
        self._model = OpenVinoModel(compile_model, options.streams, _MOST_WIDTHS)
        self._read = partial(best_steps, spec=spec)

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `RecogniserNetwork.infer`."""
        return self._model.infer(lines, self._read)


def compiler(
    bundle: AnyBundle[Any], content: bytes, shape: Sequence[int], options: RuntimeOptions
) -> Callable[[], Any]:
    """A function that compiles the network, whatever has become of its file.

    Args:
        bundle: The network's.
        content: The folded network, serialised ONNX.
        shape: Of its input; -1: any size.
        options: Threads and streams.
    """
    core = openvino.Core()
    properties = {
        "INFERENCE_NUM_THREADS": options.thread_count,
        "NUM_STREAMS": options.streams,
        # Several processes share the machine: all would be pinned to the first cores.
        "ENABLE_CPU_PINNING": False,
        # On processors with bfloat16 OpenVINO would otherwise use it unasked and change the results.
        "INFERENCE_PRECISION_HINT": "bf16" if bundle.spec.precision == "bf16" and _has_bfloat16(core) else "f32",
    }
    with _compilation(bundle):
        model = core.read_model(content)
        model.reshape(list(shape))

    def compiled() -> Any:
        with _compilation(bundle):
            return core.compile_model(model, "CPU", properties)

    return compiled


def _has_bfloat16(core: openvino.Core) -> bool:
    """Whether the processor computes with bfloat16; OpenVINO would otherwise emulate it."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _levels(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """255 times the probabilities, (H, W), rounded half to even and within 0 and 255, as in the folded network."""
    return np.asarray(cv2.convertScaleAbs(np.maximum(probabilities, 0), alpha=255), np.uint8)


@contextmanager
def _compilation(bundle: AnyBundle[Any]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise InvalidInputError(f"OpenVINO cannot compile {bundle.model_path.name}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
