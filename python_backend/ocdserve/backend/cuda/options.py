# SPDX-License-Identifier: Apache-2.0
"""How a GPU detector works, and which runtime executes its network."""

from dataclasses import dataclass

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.cuda.decode import DecoderKind
from ocdserve.backend.network import GPU_RUNTIMES
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class GpuOptions:
    """How a GPU detector works.

    Attributes:
        slots: Batches on the GPU at the same time.
        max_batch: Most images of a batch.
        graphs: Shapes (network size and batch) that stay prepared in each slot.
        decoder: `cpu` gives the same pixels as everywhere else; `gpu` and `auto` see `decode.make_decoder`.
        decode_threads: Images that the CPU decodes at the same time; None: as many as this process has cores.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    slots: int = 2
    max_batch: int = 8
    graphs: int = 8
    decoder: DecoderKind = "cpu"
    decode_threads: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("slots", 64), ("max_batch", 1024), ("graphs", 1024)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInputError(f"{name} must be from 1 to {most}; got {getattr(self, name)}")


def gpu_runtime(bundle: Bundle, runtime: str | None = None) -> str:
    """The GPU runtime for a bundle: as asked for, as the bundle was built for, or ONNX Runtime's CUDA provider.

    Raises:
        InvalidInputError: The runtime that was asked for is not one of a GPU.
    """
    if runtime is None:
        return bundle.spec.runtime if bundle.spec.runtime in GPU_RUNTIMES else "onnxruntime-cuda"
    if runtime not in GPU_RUNTIMES:
        raise InvalidInputError(f"on a GPU the runtime must be one of {', '.join(GPU_RUNTIMES)}; got {runtime!r}")
    return runtime
