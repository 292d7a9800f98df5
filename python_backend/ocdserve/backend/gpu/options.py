# SPDX-License-Identifier: Apache-2.0
"""Options of a detector or reader on a GPU."""

from dataclasses import dataclass

from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class GpuOptions:
    """Options of a detector or reader on a GPU.

    Attributes:
        slots: Batches on the GPU at the same time.
        max_batch: Most images per batch.
        graphs: Shapes (network size and batch) that stay prepared per slot.
        decoder: See `decode.make_decoder`.
        decode_threads: Images that the CPU decodes at the same time; None: one per core of this process.
        max_lines: Most lines of text per batch, of a reader.
        line_shapes: Shapes of such batches (width and number of lines) that stay prepared per slot.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    slots: int = 2
    max_batch: int = 8
    graphs: int = 8
    decoder: DecoderKind = "cpu"
    decode_threads: int | None = None
    max_lines: int = 32
    line_shapes: int = 64

    def __post_init__(self) -> None:
        limits = {"slots": 64, "max_batch": 1024, "graphs": 1024, "max_lines": 1024, "line_shapes": 1024}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInputError(f"{name} must be from 1 to {most}; got {getattr(self, name)}")
