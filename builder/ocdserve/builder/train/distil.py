# SPDX-License-Identifier: Apache-2.0
"""Distillation: a network learns the probability maps of another.

A teacher's map is computed once for each picture, from the whole picture, and kept on disk; a crop's target is cut out
of it. Any network module can be the student, and any network that computes maps the teacher.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ocdserve.backend import Bundle, ResizePolicy
from ocdserve.backend.files import write_atomically
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.builder.train.data.augment import Matrix, scaling, warp
from ocdserve.contract import InvalidInputError

# A pixel whose probability is above this is text; so many times as many pixels count as there are of text, and at least
# this share of all.
_TEXT, _HARDEST, _LEAST_SHARE = 0.3, 4, 0.03
_EPSILON = 1e-6


class TeacherMaps:
    """Maps of a teacher in a folder that several processes may share; memory holds none of them.

    A file's name is a hash of teacher, resize policy and pixels, so maps of several teachers can be in one folder.
    Where two processes compute the same map at the same time, one replaces the file of the other.

    Args:
        load: Opens the teacher's network; called when the first map is missing.
        identity: Differs between teachers whose maps differ.
        policy: The size at which the teacher sees a picture, in one piece.
        folder: Where maps are kept; it is made.
    """

    def __init__(self, load: Callable[[], Network], identity: str, policy: ResizePolicy, folder: Path) -> None:
        self._load, self._identity = load, identity
        self._policy, self._folder = replace(policy, tiles=False), folder
        self._network: Network | None = None

    @classmethod
    def of(cls, bundle: Bundle, folder: Path, policy: ResizePolicy | None = None) -> "TeacherMaps":
        """The maps of a bundle's network on the CPU, in float32; `policy` None takes the bundle's."""
        digest = hashlib.sha256(bundle.model_path.read_bytes())
        digest.update(repr(bundle.spec.network).encode())
        return cls(lambda: load_network(bundle.in_float32()), digest.hexdigest(), policy or bundle.spec.resize, folder)

    def map(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The teacher's map of a picture, 255 times the probability.

        Args:
            picture: uint8 (H, W, 3) RGB.

        Returns:
            uint8 (h, w) of the size at which the teacher sees the picture, mapped from the file, read only.
        """
        digest = hashlib.sha256(repr((self._identity, astuple(self._policy), picture.shape)).encode())
        digest.update(np.ascontiguousarray(picture).data)
        path = self._folder / f"{digest.hexdigest()[:40]}.npy"
        try:
            return self._read(path, picture.shape[:2])
        except (OSError, ValueError, EOFError):
            pass  # it is missing, or what somebody else left there
        buffer = io.BytesIO()
        np.save(buffer, self._computed(picture))
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        return self._read(path, picture.shape[:2])

    def _read(self, path: Path, source: tuple[int, ...]) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        _, content = self._policy.sizes(source[0], source[1])
        if found.dtype != np.uint8 or found.shape != content:
            raise ValueError(f"{path} holds {found.dtype} {found.shape} instead of uint8 {content}")
        return found

    def _computed(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._network is None:
            self._network = self._load()
        return map_of(self._network, self._policy, picture)


def map_of(network: Network, policy: ResizePolicy, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A network's map of a picture in one piece, uint8 (h, w), 255 times the probability.

    Args:
        network: On the CPU.
        policy: The size at which it sees the picture; `tiles` is off.
        picture: uint8 (H, W, 3) RGB.
    """
    pixels, frame = preprocess(picture, policy)
    (found,) = network.infer([pixels])
    rows, columns = frame.content
    content = found[:rows, :columns]
    return content if content.dtype == np.uint8 else np.rint(content * 255).clip(0, 255).astype(np.uint8)


def overlap(found: NDArray[np.uint8], taught: NDArray[np.uint8]) -> float:
    """How well two maps of a picture agree, of any sizes: Dice with squares (see `distillation_loss`), 0 to 1."""
    same = cv2.resize(np.asarray(taught), found.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
    mine = found.astype(np.float64)
    return float((2 * (mine * same).sum() + _EPSILON) / ((mine**2).sum() + (same**2).sum() + _EPSILON))


def cut_map(
    taught: NDArray[np.uint8], source: tuple[int, int], matrix: Matrix, size: tuple[int, int]
) -> NDArray[np.float32]:
    """The part of a map that belongs to a crop of its picture; 0 outside of the picture.

    Args:
        taught: uint8 (h, w), 255 times the probability, of the whole picture.
        source: Height and width of the picture in pixels.
        matrix: From pixels of the picture to pixels of the crop: affine, (2, 3) or (3, 3).
        size: Height and width of the crop.

    Returns:
        float32 of `size`: the probability.
    """
    to_source = scaling(source[1] / taught.shape[1], source[0] / taught.shape[0])
    part = warp(taught, matrix[:2] @ to_source, size)
    return part.astype(np.float32) / 255


def map_divergence(logits: Tensor, probability: Tensor) -> Tensor:
    """Mean divergence (Kullback and Leibler) of the pixels that differ most from a given map.

    Text covers little of a picture: the mean over all pixels would hardly notice a lost or a new text.

    Args:
        logits: (N, H, W).
        probability: The map to learn, (N, H, W), 0 to 1.
    """
    found = functional.binary_cross_entropy_with_logits(logits, probability, reduction="none")
    least = functional.binary_cross_entropy(probability, probability, reduction="none")
    text = int((probability > _TEXT).sum())
    count = min(found.numel(), max(_HARDEST * text, int(_LEAST_SHARE * found.numel())))
    return (found - least).flatten().topk(count, sorted=False).values.mean()


def distillation_loss(output: Tensor, probability: Tensor, mask: Tensor | None = None) -> Tensor:
    """Loss of a student: divergence of its map from the teacher's, and Dice; 0 where they are equal.

    Dice has squares in its denominator (Milletari et al., "V-Net", 2016), so that it is least for equal maps also where
    the teacher is not certain.

    Args:
        output: (N, C, H, W) of a network in training mode, whose first channel has the logits of the probability.
        probability: The teacher's maps, (N, H, W), 0 to 1.
        mask: 1 where a pixel counts, else 0, (N, H, W); None: everywhere.

    Raises:
        InvalidInputError: The maps are not of the student's size.
    """
    logits = output[:, 0].float()
    if logits.shape != probability.shape:
        raise InvalidInputError(
            f"the teacher's maps are {tuple(probability.shape)}, the student's {tuple(logits.shape)}; cut them for the "
            "same crops"
        )
    if mask is not None:
        # Where both are certain that there is no text, nothing is learnt.
        logits, probability = logits.masked_fill(mask == 0, -20.0), probability * mask
    student = torch.sigmoid(logits)
    overlap, squares = (student * probability).sum(), (student**2).sum() + (probability**2).sum()
    return map_divergence(logits, probability) + 1 - (2 * overlap + _EPSILON) / (squares + _EPSILON)
