# SPDX-License-Identifier: Apache-2.0
"""The network in OpenVINO."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.network import RuntimeOptions
from ocdserve.backend.network.graph import folded_network
from ocdserve.contract import InvalidInputError


class OpenVinoNetwork:
    """Compiled once: for one shape where the resize policy has only one, else for all shapes."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        core = openvino.Core()
        network = folded_network(bundle.model_path, bundle.spec.network, options.map_type)
        resize = bundle.spec.resize
        fixed = resize.kind in ("fixed", "letterbox")
        try:
            model = core.read_model(network)
            model.reshape([1, resize.height, resize.width, 3] if fixed else [1, -1, -1, 3])
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": options.thread_count,
                    "NUM_STREAMS": options.streams,
                    # Several processes share the machine: pinned ones would all sit on the first cores.
                    "ENABLE_CPU_PINNING": False,
                    # On processors with bfloat16 OpenVINO would otherwise use it and change the answers.
                    "INFERENCE_PRECISION_HINT": "f32",
                },
            )
        except RuntimeError as error:
            raise InvalidInputError(
                f"OpenVINO cannot compile {bundle.model_path.name}: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(options.streams):
            self._free.put(compiled.create_infer_request())
        self._pool = ThreadPoolExecutor(max_workers=options.streams)

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        if len(images) == 1:
            return [self._infer_one(images[0])]
        return list(self._pool.map(self._infer_one, images))

    def _infer_one(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        request = self._free.get()
        try:
            request.infer({0: image[None]}, share_inputs=True)
            probability: NDArray[Any] = request.get_output_tensor(0).data[0].copy()
            return probability
        finally:
            self._free.put(request)
