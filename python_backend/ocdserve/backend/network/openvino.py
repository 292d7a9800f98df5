# SPDX-License-Identifier: Apache-2.0
"""The network in OpenVINO."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnx
import openvino
from numpy.typing import NDArray

from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.resource_pool import ResourcePool
from ocdserve.backend.network.rewrite.concatenation import split_concatenations
from ocdserve.backend.network.rewrite.fold import folded_network
from ocdserve.backend.network.rewrite.gates import merge_residual_gates
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError


class OpenVinoNetwork:
    """Compiled once: for one shape where the resize policy has only one, else for all shapes."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        # OpenVINO runs in threads of its own: it replaces the signal stack of the calling thread and, when one of
        # several networks is deleted, leaves a freed stack in place. In the main thread the next Ctrl-C would be a
        # segmentation fault, since Python's handlers run on that stack.
        self._process = bind_to_process(self)
        self._pool = ThreadPoolExecutor(max_workers=options.streams)
        compiled = self._pool.submit(_compiled, bundle, options).result()
        self._requests: ResourcePool[Any] = ResourcePool(compiled.create_infer_request, options.streams)

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        check_process(self._process)
        return list(self._pool.map(self._infer_one, images))

    def _infer_one(self, image: NDArray[Any]) -> NDArray[Any]:
        with self._requests.acquire() as request:
            request.infer({0: image[None]}, share_inputs=True)
            probability: NDArray[Any] = request.get_output_tensor(0).data[0].copy()
        return probability


def _compiled(bundle: Bundle, options: RuntimeOptions) -> Any:
    core = openvino.Core()
    resize = bundle.spec.resize
    try:
        folded = onnx.load_from_string(
            folded_network(bundle.model_path, bundle.spec.network, options.map_type, options.pixel_type)
        )
        model = core.read_model(merge_residual_gates(split_concatenations(folded)).SerializeToString())
        model.reshape([1, resize.height, resize.width, 3] if resize.has_one_size else [1, -1, -1, 3])
        return core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": options.thread_count,
                "NUM_STREAMS": options.streams,
                # Several processes share the machine: all would be pinned to the first cores.
                "ENABLE_CPU_PINNING": False,
                # On processors with bfloat16 OpenVINO would otherwise use it and change the results.
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
    except RuntimeError as error:
        raise InvalidInputError(
            f"OpenVINO cannot compile {bundle.model_path.name}: {str(error).strip().splitlines()[-1]}"
        ) from error
