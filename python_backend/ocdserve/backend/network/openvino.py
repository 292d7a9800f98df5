# SPDX-License-Identifier: Apache-2.0
"""The network in OpenVINO."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx
import openvino
from numpy.typing import NDArray

from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.device.freed_memory import return_freed_memory
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.resource_pool import ResourcePool
from ocdserve.backend.network.rewrite.concatenation import split_concatenations
from ocdserve.backend.network.rewrite.fold import folded_network
from ocdserve.backend.network.rewrite.gates import merge_residual_gates
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, UnavailableError

# OpenVINO keeps about 5 MB for each network size that it has seen: see docs/decisions/0045.
_MOST_SIZES = 50


class OpenVinoNetwork:
    """Compiled for one shape where the resize policy has only one, else for all shapes.

    OpenVINO keeps what it has prepared for each network size until the compiled network is deleted. After `_MOST_SIZES`
    the network is compiled again before the next new size: other requests wait for it, and maps stay the same.
    """

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        # Made by `load_network` in another thread than the main one, and used in threads of its own: OpenVINO replaces
        # the signal stack of the calling thread and, when one of several networks is deleted, leaves a freed stack in
        # place. In the main thread the next Ctrl-C would be a segmentation fault, since Python's handlers run on that
        # stack.
        self._process = bind_to_process(self)
        self._pool = ThreadPoolExecutor(max_workers=options.streams)
        self._streams = options.streams
        self._compile = _compiler(bundle, options)
        self._lock = threading.Lock()
        self._sizes: set[tuple[int, ...]] = set()
        self._requests: ResourcePool[Any] | None = self._compiled()

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        check_process(self._process)
        return list(self._pool.map(self._infer_one, images))

    def _infer_one(self, image: NDArray[Any]) -> NDArray[Any]:
        with self._request(image.shape) as request:
            try:
                request.infer({0: image[None]}, share_inputs=True)
            except RuntimeError as error:
                raise UnavailableError(f"OpenVINO cannot execute the network: {_last_line(error)}") from error
            probability: NDArray[Any] = request.get_output_tensor(0).data[0].copy()
        return probability

    @contextmanager
    def _request(self, size: tuple[int, ...]) -> Iterator[Any]:
        """A request for an image of this size."""
        with ExitStack() as stack:
            with self._lock:
                is_new = size not in self._sizes
                if is_new and len(self._sizes) >= _MOST_SIZES and self._requests:
                    # Waits for those in use. OpenVINO deletes the network with its last request.
                    self._requests.drain()
                    self._requests = None
                    self._sizes.clear()
                self._requests = self._requests or self._compiled()
                self._sizes.add(size)
                request = stack.enter_context(self._requests.acquire())
            yield request
            if is_new:
                # OpenVINO frees tensors when others of another size replace them.
                return_freed_memory()

    def _compiled(self) -> ResourcePool[Any]:
        """A request for each stream, of a newly compiled network."""
        return ResourcePool(self._compile().create_infer_request, self._streams)


def _compiler(bundle: Bundle, options: RuntimeOptions) -> Callable[[], Any]:
    """A function that compiles the network, whatever has become of its file."""
    core = openvino.Core()
    resize = bundle.spec.resize
    properties = {
        "INFERENCE_NUM_THREADS": options.thread_count,
        "NUM_STREAMS": options.streams,
        # Several processes share the machine: all would be pinned to the first cores.
        "ENABLE_CPU_PINNING": False,
        # On processors with bfloat16 OpenVINO would otherwise use it and change the results.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with _compilation(bundle):
        folded = onnx.load_from_string(
            folded_network(bundle.model_path, bundle.spec.network, options.map_type, options.pixel_type)
        )
        model = core.read_model(merge_residual_gates(split_concatenations(folded)).SerializeToString())
        model.reshape([1, resize.height, resize.width, 3] if resize.has_one_size else [1, -1, -1, 3])

    def compiled() -> Any:
        with _compilation(bundle):
            return core.compile_model(model, "CPU", properties)

    return compiled


@contextmanager
def _compilation(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise InvalidInputError(f"OpenVINO cannot compile {bundle.model_path.name}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
