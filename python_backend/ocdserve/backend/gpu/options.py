# SPDX-License-Identifier: Apache-2.0
"""How a GPU detector works, and which runtime executes its network."""

from dataclasses import dataclass

from ocdserve.backend.gpu.decode import DecoderKind
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
