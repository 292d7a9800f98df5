# SPDX-License-Identifier: Apache-2.0
"""The training of the built-in weights: crops and their targets belong together."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ocdserve.backend import Bundle  # noqa: E402
from ocdserve.perf.studies import weights  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Several would wait for each other on a busy machine."""
    torch.set_num_threads(1)


def lesson(scale: float = 1.5) -> weights.Lesson:
    """A bright plate on a dark ground, and a map of half the size that marks it."""
    picture = np.full((400, 600, 3), 10, np.uint8)
    picture[160:240, 200:360] = 250
    taught = np.zeros((200, 300), np.uint8)
    taught[80:120, 100:180] = 255
    return weights.Lesson(picture, taught, (scale, scale))


def test_the_target_of_a_crop_shows_the_same_part() -> None:
    random = np.random.default_rng(0)
    marked = 0
    for _ in range(20):
        pixels, target = lesson().crop(random)
        assert pixels.shape == (320, 320, 3)
        bright, text = pixels[..., 1] > 90, target > 0.5
        marked += int(text.sum())
        assert (bright != text).mean() < 0.03
    assert marked > 10_000


def test_the_batch_of_a_step_does_not_depend_on_those_before() -> None:
    known = {"drawn": [lesson()], "receipts": [lesson(0.8)]}
    first, again, other = (weights.Crops(known, 2, 0).batch(step) for step in (7, 7, 8))
    assert [part.shape for part in first] == [(4, 3, 320, 320), (4, 320, 320), (2, 3, 320, 320)]
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.long
def test_lite_has_less_than_half_of_the_multiplications(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pages", "3", "--judged-pages", "2", "--steps", "3", "--output", str(tmp_path)]
    assert weights.main(["lite", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    # The default network takes 1.083 GMAC for 320 x 320 pixels.
    assert 0.4e9 < report["size"]["macs"] < 0.5 * 1.083e9
    assert report["trained"]["pictures"] == {"drawn": 3}
    assert report["judged"]["drawn"]["pictures"] == 2
    assert Bundle.load(tmp_path / "lite").spec.name == "ppocr-lite"
