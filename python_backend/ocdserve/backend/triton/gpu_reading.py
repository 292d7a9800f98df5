# SPDX-License-Identifier: Apache-2.0
"""The served models that read, on a GPU."""

from typing import Any

from ocdserve.backend.device import cuda
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.reader import GpuReader
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.network import load
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.triton.base_model import Outputs
from ocdserve.backend.triton.gpu_fused import GpuFusedModel
from ocdserve.backend.triton.gpu_model import GpuModel
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import pack_readings
from ocdserve.backend.triton.reading import RecogniseModel, wanted_outputs
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import ReadingParameters


class GpuReadingFusedModel(GpuFusedModel):
    """Model `ocr_fused`: as `ocdnet_fused`, and the lines of a batch share batches of the recogniser."""

    def _opened_on_gpu(self, options: ServingOptions, work: GpuOptions) -> Any:
        return GpuReader.load(
            options.bundle,
            options.recogniser,
            options.runtime.runtime,
            device=options.runtime.device,
            limits=options.limits,
            options=work,
            observer=self._metrics.observe_stage,  # type: ignore[arg-type]  # it knows the names of its stages
            bounded=True,
        )

    def _warmed_up(self) -> Any:
        return self._detector.detector

    def _parameters(self, request: Any, waiter: Waiter) -> ReadingParameters:
        return ReadingParameters.from_json(request.parameters(), self._limits)

    def _wanted(self, request: Any, waiter: Waiter) -> tuple[ReadingParameters, Any]:
        parameters = self._parameters(request, waiter)
        self._check_outputs(request, parameters)
        return parameters, wanted_outputs({*request.requested_output_names()})

    def _packed(self, found: list[Any], wanted: Any) -> Outputs:
        for each in found:
            self._metrics.observe_lines(len(each))
        return pack_readings(found, *wanted)


class GpuRecogniseModel(RecogniseModel, GpuModel):
    """Model `ocrnet_recognise`: lines are cut out by the CPU, as their images may be, and read by the GPU."""

    def _load(self, bundle: Any, options: ServingOptions) -> None:
        RecogniseModel._load(self, bundle, options)

    def _load_recogniser(self, bundle: RecogniserBundle, options: ServingOptions) -> None:
        self._recogniser, self._index = bundle, options.runtime.device
        self._device = cuda.open_device(self._index)
        network = load.load_device_recogniser(bundle, options.runtime, self._device)
        self._step = GpuRecogniser(bundle, self._device, network, GpuOptions(slots=options.slots))

    def _reads(self, waiter: Waiter) -> Recogniser:
        waiter.check("recognise")
        return self._step  # type: ignore[no-any-return]

    def _close_recogniser(self) -> None:
        """`GpuModel.finalize` closes it."""
