# SPDX-License-Identifier: Apache-2.0
"""What the engine runtimes build for: the architectures they support, and the GPU of this machine."""

from collections.abc import Collection

from ocdserve.backend.device.probe import missing, present_gpu
from ocdserve.backend.network.engine_library import Library, load, runtime_version
from ocdserve.backend.network.options import RUNTIMES
from ocdserve.builder.engine.options import CURRENT, EngineConfig, EngineRuntime
from ocdserve.contract import InvalidInputError, UnavailableError

__all__ = ["Library", "architectures", "can_execute", "load", "present_gpu", "runtime_version", "targets"]


def architectures(runtime: EngineRuntime, config: EngineConfig) -> tuple[str, ...]:
    """Architectures that an engine is built for, `current` resolved, in ascending order.

    Raises:
        InvalidInputError: The runtime does not build for one of them, or does not have one of the settings.
        UnavailableError: A GPU is needed and there is none, or the runtime is not installed.
    """
    config.check(runtime)
    trt = load(runtime).trt
    if runtime == "tensorrt":
        present, _ = present_gpu()
        if config.architectures not in ((CURRENT,), (present,)):
            raise InvalidInputError(
                f"TensorRT builds for the GPU of this machine, {present}, only; got {config.architectures[0]}. "
                "Build on a machine with that GPU, or with TensorRT-RTX."
            )
        return (present,)
    offered = sorted((f"sm_{name[2:]}" for name in trt.ComputeCapability.__members__ if name[:2] == "SM"), key=_number)
    choice = f"TensorRT-RTX {trt.__version__} builds for {', '.join(offered)}"
    wanted = config.architectures
    if wanted == (CURRENT,):
        try:
            wanted = (present_gpu()[0],)
        except UnavailableError as error:
            raise UnavailableError(f"architecture 'current': {error} {choice}: name one or several.") from error
    for name in wanted:
        if name not in offered:
            raise InvalidInputError(f"{choice}; got {name}")
    return tuple(sorted(wanted, key=_number))


def targets(runtime: EngineRuntime, config: EngineConfig) -> tuple[str, ...]:
    """What an engine is bound to: architectures and, unless it is compatible with others, the model of the GPU.

    Raises:
        InvalidInputError: As `architectures`.
        UnavailableError: As `architectures`.
    """
    built_for = architectures(runtime, config)
    if runtime == "tensorrt-rtx" or config.hardware_compatibility == "same_compute_capability":
        return built_for
    if config.hardware_compatibility == "ampere_plus":
        return ("ampere_plus",)
    return (*built_for, present_gpu()[1])


def can_execute(runtime: EngineRuntime, built_for: Collection[str]) -> bool:
    """Whether this machine can serve an engine that is bound to these targets, as `targets` returns them."""
    if missing(modules=[RUNTIMES[runtime].module]):
        return False
    return runtime == "tensorrt" or present_gpu()[0] in built_for


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
