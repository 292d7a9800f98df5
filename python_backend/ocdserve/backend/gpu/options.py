# SPDX-License-Identifier: Apache-2.0
"""Options of a GPU detector."""

from dataclasses import dataclass

from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class GpuOptions:
    """Options of a GPU detector.

    Attributes:
        slots: Batches on the GPU at the same time.
        max_batch: Most images per batch.
        graphs: Shapes (network size and batch) that stay prepared per slot.
        decoder: See `decode.make_decoder`.
        decode_threads: Images that the CPU decodes at the same time; None: one per core of this process.

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
