# SPDX-License-Identifier: Apache-2.0
"""What the engine runtimes build for: the architectures they offer, and the GPU that is there."""

from ocdserve.backend.device.probe import present_gpu
from ocdserve.backend.network.engine_library import TITLES, Library, load, runtime_version
from ocdserve.builder.engine.options import CURRENT, EngineOptions
from ocdserve.contract import InvalidInputError, UnavailableError

__all__ = ["TITLES", "Library", "architectures", "load", "present_gpu", "runtime_version", "targets"]


def architectures(options: EngineOptions) -> tuple[str, ...]:
    """Architectures that an engine of these options is built for, `current` replaced, in ascending order.

    Raises:
        InvalidInputError: The runtime does not build for one of them.
        UnavailableError: A GPU is needed and there is none, or the runtime is not installed.
    """
    trt = load(options.runtime).trt
    if options.runtime == "tensorrt":
        present, _ = present_gpu()
        if options.architectures not in ((CURRENT,), (present,)):
            raise InvalidInputError(
                f"TensorRT builds for the GPU of this machine, {present}, only; got {options.architectures[0]}. "
                "Build on a machine with that GPU, or with TensorRT-RTX."
            )
        return (present,)
    offered = sorted((f"sm_{name[2:]}" for name in trt.ComputeCapability.__members__ if name[:2] == "SM"), key=_number)
    choice = f"TensorRT-RTX {trt.__version__} builds for {', '.join(offered)}"
    wanted = options.architectures
    if wanted == (CURRENT,):
        try:
            wanted = (present_gpu()[0],)
        except UnavailableError as error:
            raise UnavailableError(f"architecture 'current': {error} {choice}: name one or several.") from error
    for name in wanted:
        if name not in offered:
            raise InvalidInputError(f"{choice}; got {name}")
    return tuple(sorted(wanted, key=_number))


def targets(options: EngineOptions) -> tuple[str, ...]:
    """What an engine of these options is bound to: architectures and, unless it is compatible, the model of the GPU.

    Raises:
        InvalidInputError: As `architectures`.
        UnavailableError: As `architectures`.
    """
    built_for = architectures(options)
    if options.runtime == "tensorrt-rtx" or options.hardware_compatibility == "same_compute_capability":
        return built_for
    if options.hardware_compatibility == "ampere_plus":
        return ("ampere_plus",)
    return (*built_for, present_gpu()[1])


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
