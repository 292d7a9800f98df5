# SPDX-License-Identifier: Apache-2.0
"""What a published model's `config.pbtxt` says that its template does not."""

import json
from dataclasses import asdict

from tritonclient.grpc import model_config_pb2

from ocdserve.backend.network.options import gpu_runtime
from ocdserve.backend.publish.environment import ENVIRONMENT_PARAMETER, ENVIRONMENT_PATH
from ocdserve.backend.publish.options import PublishOptions
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle, served_digest
from ocdserve.contract import (
    FUSED,
    GENERATION_PARAMETER,
    MODELS,
    NETWORK,
    NETWORK_IMAGE,
    OCR_FUSED,
    READING_MODELS,
    READING_PARAMETERS,
    RECOGNISE,
    REQUEST_DEFAULTS,
    Limits,
)

# Folders of what a model needs of the bundles, in the model's own: a Triton that reads a repository from an object
# store copies each model to a folder of its own.
BUNDLE_FOLDER, RECOGNISER_FOLDER = "bundle", "recogniser"
# Those that execute the detector's network themselves.
FUSED_MODELS = (FUSED, OCR_FUSED)
# Each process of these has a queue, and each of those with a network too has the network.
WITH_OWN_QUEUE = (*FUSED_MODELS, RECOGNISE)
WITH_NETWORK = (*WITH_OWN_QUEUE, NETWORK)
# Batches on the GPU at the same time by default: one is copied while the other computes.
_SLOTS = 2


def configure(
    config: model_config_pb2.ModelConfig,
    options: PublishOptions,
    bundle: Bundle,
    recogniser: RecogniserBundle | None,
) -> None:
    """Complete a template's configuration by the options and the bundles."""
    _set_parameters(config, options, bundle, recogniser)
    if options.network == "tensorrt_plan":
        _use_engine(config)
    _set_queue(config, options)


def _use_engine(config: model_config_pb2.ModelConfig) -> None:
    """Have Triton's TensorRT backend execute the network, without the inputs that an engine does not have."""
    not_images = {tensor.name for tensor in MODELS[NETWORK].inputs} - {NETWORK_IMAGE.name}
    for step in config.ensemble_scheduling.step:
        if step.model_name == NETWORK:
            for name in not_images:
                del step.input_map[name]
    if config.name != NETWORK:
        return
    config.backend = ""
    config.platform = "tensorrt_plan"
    kept = [tensor for tensor in config.input if tensor.name not in not_images]
    del config.input[:]
    config.input.extend(kept)
    for tensor in config.input:
        tensor.allow_ragged_batch = False  # an engine takes one array: images of one size share an execution
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1)
    config.parameters.clear()


def _set_parameters(
    config: model_config_pb2.ModelConfig, options: PublishOptions, bundle: Bundle, recogniser: RecogniserBundle | None
) -> None:
    defaults = bundle.spec.postprocess.request_defaults()
    if recogniser and config.name in READING_MODELS:
        own = {"min_text_score": recogniser.spec.min_text_score}
        defaults |= {name: spec.default for name, spec in READING_PARAMETERS.items() if spec.stage == "read"} | own
    values = {
        "bundle": BUNDLE_FOLDER,
        "recogniser": RECOGNISER_FOLDER,
        "runtime": options.runtime or "",
        "threads": str(options.threads or 0),
        "streams": str(options.streams),
        # Each of the processes has a queue of its own.
        "queue_size": str(-(-options.queue_size // (options.instances if config.name in WITH_OWN_QUEUE else 1))),
        "queue_time_ms": str(options.queue_time_ms),
        GENERATION_PARAMETER: served_digest(bundle, recogniser),
        REQUEST_DEFAULTS: json.dumps(defaults),
    }
    if options.gpu and config.backend == "python":
        _put_on_gpu(config)
        # Of two networks each has its own, unless one is named.
        executed = recogniser if recogniser and config.name == RECOGNISE else bundle
        values["runtime"] = (
            (options.runtime or "") if config.name == OCR_FUSED else gpu_runtime(executed, options.runtime)
        )
        values["gpu"] = "true"
        values["slots"] = str(options.streams if options.streams > 1 else _SLOTS)
        values["decoder"] = options.decoder
        if config.name in FUSED_MODELS:
            config.parameters["queue_delay_us"].string_value = ""
            values["queue_delay_us"] = str(options.queue_delay_us)
        # Otherwise Triton copies every tensor to the host before a Python model sees it.
        values["FORCE_CPU_ONLY_INPUT_TENSORS"] = "yes" if config.name == RECOGNISE else "no"
    for name in config.parameters:
        config.parameters[name].string_value = values[name]
    if config.backend == "python":
        config.parameters[GENERATION_PARAMETER].string_value = values[GENERATION_PARAMETER]
        if options.environment:
            config.parameters[ENVIRONMENT_PARAMETER].string_value = ENVIRONMENT_PATH
        for name, value in asdict(options.limits).items():
            if value != getattr(Limits(), name):
                config.parameters[name].string_value = str(value)


def _set_queue(config: model_config_pb2.ModelConfig, options: PublishOptions) -> None:
    """Set the instances of the models that hold the network, and the delay of the queues that are Triton's."""
    if config.name in WITH_NETWORK:
        for group in config.instance_group:
            group.count = options.instances
    if config.HasField("dynamic_batching"):
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us


def _put_on_gpu(config: model_config_pb2.ModelConfig) -> None:
    """Set one instance on each GPU, and the additional parameters of a model on a GPU."""
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1)
    if "streams" in config.parameters:
        del config.parameters["streams"]
    for name in ("gpu", "slots", "decoder", "FORCE_CPU_ONLY_INPUT_TENSORS"):
        config.parameters[name].string_value = ""
