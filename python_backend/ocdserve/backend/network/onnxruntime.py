# SPDX-License-Identifier: Apache-2.0
"""The network in ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ocdserve.backend.device.forks import bind_to_process
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT, folded_network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, UnavailableError


class OnnxRuntimeNetwork:
    """One session, all shapes."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        # Forked children execute it in the calling thread alone.
        bind_to_process(self)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.thread_count
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # A pattern allots all tensors of a network size in one block, which the arena keeps: see docs/decisions/0045.
        settings.enable_mem_pattern = False
        network = folded_network(bundle.model_path, bundle.spec.network, options.map_type, options.pixel_type)
        try:
            self._session = onnxruntime.InferenceSession(network, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InvalidInputError(f"ONNX Runtime cannot load {bundle.model_path.name}: {error}") from error

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        try:
            return [self._session.run([OUTPUT], {INPUT: image[None]})[0][0] for image in images]
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UnavailableError(f"ONNX Runtime cannot execute the network: {error}") from error
