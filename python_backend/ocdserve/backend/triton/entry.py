# SPDX-License-Identifier: Apache-2.0
"""What Triton instantiates: a model's implementation on the CPU or on a GPU, as its configuration says."""

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from ocdserve.backend.serve.process.health import start_heartbeat
from ocdserve.backend.triton.options import ServingOptions


class _Served:
    """Forwards Triton's calls."""

    # `module:class`, of which each process imports one.
    _on_cpu: str
    _on_gpu: str

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once by Triton: `args` holds the model's configuration and folder."""
        logging.getLogger("ocdserve").handlers = [_TritonLog(args.get("model_name", "model"))]
        chosen = self._on_gpu if ServingOptions.from_triton(args).gpu else self._on_cpu
        module, _, name = chosen.partition(":")
        self._model: Any = getattr(importlib.import_module(f"ocdserve.backend.triton.{module}"), name)()
        self._model.initialize(args)
        start_heartbeat(then=self._model.beat)

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch."""
        self._model.execute(requests)

    def is_ready(self) -> bool:
        """Whether this process can serve.

        Asked by a Python backend with pull request 430 (February 2026), which waits 5 s for the answer.
        """
        return bool(self._model.is_ready())

    def finalize(self) -> None:
        """Called once by Triton before the process ends."""
        self._model.finalize()


class _TritonLog(logging.Handler):
    """Writes warnings to Triton's log, from which the launcher shows them."""

    def __init__(self, model: str) -> None:
        super().__init__(logging.WARNING)
        self._model = model

    def emit(self, record: logging.LogRecord) -> None:
        pb_utils.Logger.log_warn(f"{self._model}: {record.getMessage()}")


class ServedPreprocess(_Served):
    """Model `ocdnet_preprocess`."""

    _on_cpu = "models:PreprocessModel"
    _on_gpu = "gpu_steps:GpuPreprocessModel"


class ServedNetwork(_Served):
    """Model `ocdnet_network`."""

    _on_cpu = "models:NetworkModel"
    _on_gpu = "gpu_steps:GpuNetworkModel"


class ServedPostprocess(_Served):
    """Model `ocdnet_postprocess`."""

    _on_cpu = "models:PostprocessModel"
    _on_gpu = "gpu_steps:GpuPostprocessModel"


class ServedFused(_Served):
    """Model `ocdnet_fused`."""

    _on_cpu = "models:FusedModel"
    _on_gpu = "gpu_fused:GpuFusedModel"


class ServedRecognise(_Served):
    """Model `ocrnet_recognise`."""

    _on_cpu = "reading:RecogniseModel"
    _on_gpu = "gpu_reading:GpuRecogniseModel"


class ServedReadingFused(_Served):
    """Model `ocr_fused`."""

    _on_cpu = "reading:ReadingFusedModel"
    _on_gpu = "gpu_reading:GpuReadingFusedModel"
