# SPDX-License-Identifier: Apache-2.0
"""TensorRT's calibration cache: a text file with a scale for each tensor.

The first line is `TRT-<version>-<calibrator>`, every other one `<tensor>: <scale>`, the scale (largest magnitude /
127) as the hexadecimal digits of a big-endian float32. trtexec, TAO and polygraphy write it, ONNX Runtime reads it.

Metadata that the format lacks (network, images and method of the scales) are entries of reserved names, as
`ocdserve.calibration/onnx-sha256/<hash>: 3f800000`. Other readers look tensors up by name and ignore them.
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.files import write_atomically
from ocdserve.contract import InvalidInputError

# Of TensorRT 10.12.0, which ignores a cache of another version or calibrator and calibrates again. trtexec, TAO and
# polygraphy use this calibrator, whatever the method of the scales.
HEADER = "TRT-101200-EntropyCalibration2"

_NOTE = "ocdserve.calibration/"
_NOTES = {"onnx_sha256": "onnx-sha256/", "images_sha256": "images-sha256/", "method": "method/"}
_SHOWN = 5


@dataclass(frozen=True)
class CalibrationCache:
    """Content of a calibration cache.

    Attributes:
        scales: Scale of each tensor, in the file's order: largest magnitude / 127, rounded to float32. Files of other
            tools may hold invalid scales (see `unusable`).
        header: First line.
        onnx_sha256: Hash of the calibrated ONNX file, hexadecimal; None if unknown.
        images_sha256: Hash of the set of images.
        method: How the ranges were chosen.
    """

    scales: Mapping[str, float]
    header: str = HEADER
    onnx_sha256: str | None = None
    images_sha256: str | None = None
    method: str | None = None

    @classmethod
    def parse(cls, content: str | bytes) -> "CalibrationCache":
        """Parse a cache.

        Raises:
            InvalidInputError: The content is malformed; the message names the line.
        """
        if isinstance(content, bytes):
            try:
                content = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"not a calibration cache: it is not UTF-8 text ({error})") from error
        # Not splitlines: names may contain characters that it treats as line ends.
        header, *lines = (line.rstrip("\r") for line in content.split("\n"))
        if not re.fullmatch(r"TRT-\w+-\w+", header):
            raise InvalidInputError(
                f"not a calibration cache: line 1 must be like {HEADER!r} "
                f"(TensorRT's version and calibrator); got {header[:80]!r}"
            )
        scales: dict[str, float] = {}
        notes: dict[str, str] = {}
        for number, line in enumerate(lines, 2):
            if not line.strip():
                continue
            name, scale = _entry(line, number)
            field, value = _note(name)
            if name in scales or field in notes:
                raise InvalidInputError(f"line {number} of the calibration cache: {name!r} has a scale already")
            if field:
                notes[field] = value
            else:
                scales[name] = scale
        return cls(scales, header, **notes)

    @classmethod
    def load(cls, path: Path) -> "CalibrationCache":
        """Read a cache file.

        Raises:
            InvalidInputError: The file does not exist or is malformed; the message names the file and the line.
        """
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise InvalidInputError(f"cannot read the calibration cache {str(path)!r}: {error.strerror}") from error
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from error

    def to_text(self) -> str:
        """Text of the file: metadata, then tensors.

        Raises:
            InvalidInputError: A name cannot be written in this format, or a scale is too large for float32.
        """
        notes = {
            f"{_NOTE}{prefix}{getattr(self, field)}": 1.0
            for field, prefix in _NOTES.items()
            if getattr(self, field) is not None
        }
        return "\n".join([self.header, *(_line(*entry) for entry in {**notes, **self.scales}.items())]) + "\n"

    def save(self, path: Path) -> None:
        """Write the cache file in one step: whatever interrupts it, the file is the old one or the new one."""
        write_atomically(path, self.to_text().encode())

    def sha256(self) -> str:
        """Hash of the cache as it is written, hexadecimal."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    @property
    def unusable(self) -> tuple[str, ...]:
        """Tensors with an invalid scale: zero, negative, infinite or NaN."""
        return tuple(name for name, scale in self.scales.items() if not (math.isfinite(scale) and scale > 0))

    def check_bound_to(self, onnx_sha256: str, tensors: Iterable[str], force: bool = False) -> None:
        """Check that a cache is for a network.

        A cache of another tool, which does not name its network, is accepted if it has all scales.

        Args:
            onnx_sha256: Hash of the network's ONNX file, hexadecimal.
            tensors: Tensors that need a scale.
            force: Accept a cache of another network, if it has all scales.

        Raises:
            InvalidInputError: The cache is for another network, or tensors have no valid scale; the message names both
                hashes or the first tensors.
        """
        if self.onnx_sha256 not in (None, onnx_sha256) and not force:
            raise InvalidInputError(
                "the calibration cache was made for another network, of which the ONNX file has the SHA-256 "
                f"{self.onnx_sha256}; this one has {onnx_sha256}. Calibrate this network, or pass --force to use the "
                "cache as it is."
            )
        needed = list(dict.fromkeys(tensors))
        missing = [name for name in needed if name not in self.scales]
        if missing:
            raise InvalidInputError(
                f"the calibration cache has no scale for {len(missing)} of the {len(needed)} tensors that need one: "
                f"{_first(missing)}. It is for another network or another export of this one; calibrate this network."
            )
        bad = sorted(set(self.unusable).intersection(needed), key=needed.index)
        if bad:
            raise InvalidInputError(
                f"the calibration cache has invalid scales (zero, negative or not finite) for {len(bad)} of "
                f"the {len(needed)} tensors that need one: "
                f"{_first([f'{name} ({self.scales[name]:g})' for name in bad])}. Calibrate this network."
            )


def _entry(line: str, number: int) -> tuple[str, float]:
    # Names may contain colons: the last one separates. Leading zeros may be missing.
    found = re.fullmatch(r"(.+): *([0-9a-fA-F]{1,8}) *", line)
    if found is None:
        raise InvalidInputError(
            f"line {number} of the calibration cache must be '<tensor>: <up to 8 hexadecimal digits>'; "
            f"got {line[:120]!r}"
        )
    (scale,) = struct.unpack(">f", bytes.fromhex(found[2].zfill(8)))
    return found[1], scale


def _line(name: str, scale: float) -> str:
    if not name.strip() or "\n" in name or "\r" in name:
        raise InvalidInputError(f"a calibration cache cannot hold a tensor of the name {name!r}")
    try:
        return f"{name}: {struct.pack('>f', scale).hex()}"
    except OverflowError as error:
        raise InvalidInputError(f"the scale of {name!r} is too large for float32: {scale!r}") from error


def _note(name: str) -> tuple[str, str]:
    """Field of CalibrationCache that an entry's name encodes, and its value; empty for a tensor."""
    for field, prefix in _NOTES.items():
        if name.startswith(_NOTE + prefix):
            return field, name.removeprefix(_NOTE + prefix)
    return "", ""


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
