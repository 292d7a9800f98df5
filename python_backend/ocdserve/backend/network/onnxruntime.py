# SPDX-License-Identifier: Apache-2.0
"""The network in ONNX Runtime."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ocdserve.backend.device.forks import bind_to_process
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.fold import REWRITES, folded_network
from ocdserve.backend.network.rewrite.fold_recogniser import folded_recogniser
from ocdserve.backend.spec.bundle import AnyBundle, Bundle, RecogniserBundle
from ocdserve.backend.stages.ctc import Steps, best_steps
from ocdserve.contract import InvalidInputError, UnavailableError


class OnnxRuntimeModel:
    """One session, all shapes.

    Args:
        bundle: The network's.
        content: The folded network, serialised ONNX.
        options: Threads.
    """

    def __init__(self, bundle: AnyBundle[Any], content: bytes, options: RuntimeOptions) -> None:
        # Forked children execute it in the calling thread alone.
        bind_to_process(self)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.thread_count
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # A pattern allots all tensors of a network size in one block, which the arena keeps: see docs/decisions/0045.
        settings.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InvalidInputError(f"ONNX Runtime cannot load {bundle.model_path.name}: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def infer(self, array: NDArray[Any]) -> NDArray[Any]:
        """The output for one input, both without the batch's axis.

        Raises:
            UnavailableError: ONNX Runtime fails.
        """
        try:
            output: NDArray[Any] = self._session.run(None, {self._input: array[None]})[0][0]
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UnavailableError(f"ONNX Runtime cannot execute the network: {error}") from error
        return output


class OnnxRuntimeNetwork:
    """One image after the other."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions) -> None:
        network = folded_network(
            bundle.model_path, bundle.spec.network, options.map_type, options.pixel_type, REWRITES["onnxruntime"]
        )
        self._model = OnnxRuntimeModel(bundle, network, options)

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Network.infer`."""
        return [self._model.infer(image) for image in images]


class OnnxRuntimeRecogniser:
    """One line after the other."""

    def __init__(self, bundle: RecogniserBundle, options: RuntimeOptions) -> None:
        spec = bundle.spec
        self._model = OnnxRuntimeModel(bundle, folded_recogniser(bundle.model_path, spec.network), options)
        self._read = partial(best_steps, spec=spec)

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `RecogniserNetwork.infer`."""
        return [self._read(self._model.infer(line)) for line in lines]
