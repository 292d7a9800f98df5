# SPDX-License-Identifier: Apache-2.0
"""What all served models do: loading, deadlines, stages, and turning results or errors into responses.

Errors belong to a request: one with bad input gets its own INVALID_ARG response; the others are answered.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from time import monotonic_ns
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ocdserve.backend.detector import Detector
from ocdserve.backend.network.load import chosen_runtime, load_network
from ocdserve.backend.serve.log_lines import request_line
from ocdserve.backend.serve.process.health import TRITON_VERSION_VARIABLE
from ocdserve.backend.spec.bundle import AnyBundle, Bundle, generation_number
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.triton.admission import LastAnswer
from ocdserve.backend.triton.metrics import ServingMetrics, Stage
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import pack_detections
from ocdserve.backend.triton.waiter import CancelledError, GenerationError, OverloadError, Waiter
from ocdserve.contract import (
    CONTEXT,
    MODELS,
    NEXT,
    READING_MODELS,
    InvalidInputError,
    ReadingParameters,
    RequestParameters,
)
from ocdserve.results.detections import Detections

# Arrays, or tensors on a GPU.
Outputs = dict[str, Any]

_POLYGON_OUTPUTS = {"POINTS", "POINT_COUNTS"}
# Outputs that are computed where a parameter asks for them.
ONLY_WITH: Mapping[str, set[str]] = {
    "polygons": _POLYGON_OUTPUTS,
    "words": {"WORD_TEXTS", "WORD_SCORES", "WORD_QUADS", "WORD_COUNTS"},
}
# Images that are decoded at the same time, more than there are cores: one that takes long delays no others.
SPARE_DECODERS = 2


class Model:
    """Base of the models: loading, and turning results or errors into responses."""

    stages: tuple[Stage, ...]

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton: `args` holds the model's configuration and folder."""
        options = ServingOptions.from_triton(args)
        has_network = bool({"network", "gpu", "recognise"} & {*self.stages})
        # Repositories of earlier versions have one bundle for all models, and do not say its digest.
        bundle = self._opened(options, spec_only=bool(options.digest) and not has_network)
        digest = options.digest or bundle.digest()
        self._generation = generation_number(digest)
        self._limits = options.limits
        config = json.loads(args["model_config"])
        self._contract = MODELS[config["name"].removesuffix(NEXT)]
        build = _build(bundle, digest, options) if has_network else None
        self._metrics = ServingMetrics(
            pb_utils, self._contract.name, self.stages, self._limits, args.get("model_instance_name", ""), build
        )
        # How a later step of an ensemble reports to the first one; None in repositories of earlier versions too.
        self._first_step = LastAnswer.of_server() if _has_context(config, "input") else None
        self._later_steps = LastAnswer.of_server() if _has_context(config, "output") else None
        self._load(bundle, options)

    def _opened(self, options: ServingOptions, spec_only: bool) -> Any:
        """The bundle that this model serves."""
        return Bundle.load(options.bundle, spec_only=spec_only)

    def _load(self, bundle: Any, options: ServingOptions) -> None:
        has_network = "network" in self.stages
        network = load_network(bundle, options.runtime) if has_network else None
        self._bundle = bundle
        self._detector = Detector(bundle, network, options.limits)
        self._open_pools(options)
        if has_network:
            self._warm_up(options)

    def _open_pools(self, options: ServingOptions) -> None:
        self._pool = ThreadPoolExecutor(max_workers=options.runtime.thread_count + SPARE_DECODERS)
        self._runner = ThreadPoolExecutor(max_workers=options.runtime.streams)

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch.

        Each request is answered as soon as it is done: neither its client nor the next step waits for the rest of the
        batch, and the stages of different requests overlap.
        """
        started = [(sender, self.start(inputs, waiter), waiter) for sender, inputs, waiter in self._read_all(requests)]
        for sender, job, waiter in started:
            self._send(sender, self._guarded(self.finish, job, waiter), waiter)

    def is_ready(self) -> bool:
        """Whether this process can serve."""
        return True

    def beat(self) -> None:
        """Called often, by a thread that must not wait."""
        self._metrics.beat()

    def finalize(self) -> None:
        """Called once by Triton before the process ends."""
        self._pool.shutdown(wait=False)
        self._runner.shutdown(wait=False)
        self._metrics.close()

    def read(self, request: Any, waiter: Waiter) -> Any:
        """Validate one request and read the inputs of `start`; raises InvalidInputError."""
        raise NotImplementedError

    def start(self, inputs: Any, waiter: Waiter) -> Any:
        """Start the work of one request in other threads, if there is any."""
        return inputs

    def finish(self, job: Any, waiter: Waiter) -> Outputs:
        """Wait for the work that `start` began and finish the request."""
        raise NotImplementedError

    def _read_all(self, requests: list[Any]) -> Iterator[tuple[Any, Any, Waiter]]:
        """Response sender, inputs and waiter of each valid request, one by one; the others get their error."""
        for request in requests:
            sender = request.get_response_sender()
            waiter = self._guarded(_waiter_behind, request)
            inputs = waiter if isinstance(waiter, Exception) else self._guarded(self._read, request, waiter)
            if isinstance(inputs, Exception):
                self._send(sender, inputs, waiter if isinstance(waiter, Waiter) else Waiter())
            else:
                yield sender, inputs, waiter

    def _read(self, request: Any, waiter: Waiter) -> Any:
        waiter.check(self.stages[0])
        if waiter.generation not in (0, self._generation):
            raise GenerationError(
                f"another detector has prepared the image than the one of {self._contract.name}: the server's detector "
                "was replaced meanwhile. Send the request again."
            )
        return self.read(request, waiter)

    def _parameters(self, request: Any, waiter: Waiter) -> RequestParameters:
        kind = ReadingParameters if waiter.model in READING_MODELS else RequestParameters
        return kind.from_json(request.parameters(), self._limits)

    def _wanted(self, request: Any, waiter: Waiter) -> tuple[RequestParameters, bool]:
        """The request's parameters, and whether polygon tensors belong in its answer.

        Triton does not distinguish a request that names no outputs from one that names all: both ask for everything,
        and so does an ensemble's step. Only a request for some outputs, polygons among them, clearly wants polygons;
        without the parameter `polygons` it is an error.
        """
        parameters = self._parameters(request, waiter)
        self._check_outputs(request, parameters)
        return parameters, bool({*request.requested_output_names()} & _POLYGON_OUTPUTS)

    def _check_outputs(self, request: Any, parameters: RequestParameters, names: Iterable[str] = ONLY_WITH) -> None:
        asked = {*request.requested_output_names()}
        if asked == {spec.name for spec in self._contract.outputs}:
            return
        for name in names:
            if ONLY_WITH[name] & asked and not getattr(parameters, name, False):
                *first, last = [spec.name for spec in self._contract.outputs if spec.name in ONLY_WITH[name]]
                raise InvalidInputError(
                    f"the outputs {', '.join(first)} and {last} are only computed with the request parameter "
                    f"{name}=true; asked for were {', '.join(sorted(asked))}. Set {name} to true or leave these "
                    "outputs out."
                )

    def _infer(self, images: list[tuple[NDArray[np.uint8], Frame]], waiter: Waiter) -> list[NDArray[Any]]:
        waiter.check("network")
        with self._metrics.stage("network", len(images)):
            return self._detector.infer([pixels for pixels, _ in images], [frame for _, frame in images])

    def _postprocess(self, probability: NDArray[Any], frame: Frame, parameters: RequestParameters) -> Detections:
        with self._metrics.stage("postprocess"):
            found = self._detector.postprocess(probability, frame, parameters)
        self._metrics.observe_detections(len(found))
        return found

    def _detections(
        self,
        images: list[tuple[NDArray[np.uint8], Frame]],
        parameters: RequestParameters,
        polygons: bool,
        waiter: Waiter,
    ) -> Outputs:
        """Detection outputs of one request's maps with their frames."""
        waiter.check("postprocess")
        return pack_detections([self._postprocess(*image, parameters) for image in images], polygons)

    def _warm_up(self, options: ServingOptions) -> None:
        for height, width in options.warm_up_sizes:
            frame = Frame.of(height, width, self._detector.spec.resize)
            self._detector.infer([np.zeros((*level.network, 3), np.uint8) for level in frame.levels])

    def _guarded(self, function: Any, *arguments: Any) -> Any:
        """The function's result, or its exception."""
        try:
            return function(*arguments)
        except Exception as error:
            return error

    def _send(self, sender: Any, result: Outputs | Exception, waiter: Waiter) -> None:
        error = result if isinstance(result, Exception) else None
        # An error of any step is the answer; what the first steps return is not.
        is_detected = isinstance(result, Exception) or "QUADS" in result
        is_last = isinstance(result, Exception) or ("TEXTS" if waiter.model in READING_MODELS else "QUADS") in result
        if is_detected and self._first_step and waiter.generation:
            # A step has passed it on. Before the client has its answer, and sends its next request.
            self._first_step.write(waiter.arrival, monotonic_ns(), error is not None)
        try:
            sender.send(self._response(result, waiter), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as failure:
            error, is_last = failure, True
            raise
        finally:
            if is_last:
                self._metrics.count(waiter, error)

    def _response(self, result: Outputs | Exception, waiter: Waiter) -> Any:
        if not isinstance(result, Exception):
            tensors = [self._tensor(name, values) for name, values in result.items()]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        code = self._code(result)
        if code is not None:
            error = pb_utils.TritonError(str(result), code)
        else:
            message = f"{type(result).__name__}: {result}"
            pb_utils.Logger.log_error(request_line(self._contract.name, waiter.request_id, message))
            error = pb_utils.TritonError(
                f"{self._contract.name} failed with {type(result).__name__}; the server's log has the details. "
                "This is a fault of the server, not of the request.",
                pb_utils.TritonError.INTERNAL,
            )
        return pb_utils.InferenceResponse(output_tensors=[], error=error)

    def _tensor(self, name: str, values: Any) -> Any:
        return pb_utils.Tensor(name, values)

    def _code(self, error: Exception) -> Any:
        """Triton's code for an error that the client may see; None: it is a fault of the server."""
        codes = {
            InvalidInputError: pb_utils.TritonError.INVALID_ARG,
            OverloadError: pb_utils.TritonError.UNAVAILABLE,
            GenerationError: pb_utils.TritonError.UNAVAILABLE,
            CancelledError: pb_utils.TritonError.CANCELLED,
        }
        return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


def _has_context(config: Mapping[str, Any], kind: str) -> bool:
    return any(tensor["name"] == CONTEXT.name for tensor in config.get(kind, ()))


def _waiter_behind(request: Any) -> Waiter:
    """Who waits, by what the step before has passed on; without it the request's own `timeout` counts from now."""
    passed_on = pb_utils.get_input_tensor_by_name(request, CONTEXT.name)
    if passed_on is None:
        return Waiter.limited(request.timeout(), request_id=request.request_id())
    return Waiter.behind(passed_on.as_numpy(), request.request_id())


def _build(bundle: AnyBundle[Any], digest: str, options: ServingOptions) -> dict[str, str]:
    """What is served, as the labels of its metric."""
    version = ""
    # A checkout on the path is not installed.
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version("ocdserve")
    return {
        "version": version,
        "bundle": digest,
        "runtime": chosen_runtime(bundle, options.runtime.runtime, options.gpu) or "",
        "triton": os.environ.get(TRITON_VERSION_VARIABLE, ""),
    }
