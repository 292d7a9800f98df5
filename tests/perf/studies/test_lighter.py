# SPDX-License-Identifier: Apache-2.0
"""The study of a lighter network: crops and their targets belong together, and a student learns them."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ocdserve.backend import PRESETS  # noqa: E402
from ocdserve.perf.inputs.pictures import receipt  # noqa: E402
from ocdserve.perf.studies import lighter  # noqa: E402

SPEC = PRESETS["ppocr"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Time is that of all threads, and several spend most of it waiting for each other on a busy machine."""
    torch.set_num_threads(1)


def test_the_target_of_a_crop_shows_the_same_part() -> None:
    picture = np.full((200, 300, 3), 10, np.uint8)
    picture[80:120, 100:180] = 250
    # A map at half the scale that marks the same place.
    taught = np.zeros((100, 150), np.uint8)
    taught[40:60, 50:90] = 255
    random = np.random.default_rng(0)
    marked = 0
    for _ in range(20):
        pixels, target = lighter.crop(random, lighter.Lesson(picture, taught, (1.5, 1.5)), 128)
        assert pixels.shape == (128, 128, 3)
        bright, text = pixels[..., 1] > 90, target > 0.5
        marked += int(text.sum())
        assert (bright != text).mean() < 0.03
    assert marked > 1000


def test_a_student_learns_the_maps_within_seconds() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    known = []
    for _ in range(4):
        picture = random.integers(0, 60, (96, 96, 3), np.uint8)
        picture[30:50, 20:70] += 180
        known.append(lighter.Lesson(picture, np.where(picture[..., 0] > 120, 255, 0).astype(np.uint8), (1.0, 1.0)))
    student = torch.nn.Conv2d(3, 1, 3, padding=1)
    losses = lighter.distil(student, SPEC, known, seconds=0.6, seed=0, side=64, rate=0.05)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert not student.training


@pytest.mark.long
def test_the_study_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("img", "gt"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in range(2):
        (tmp_path / f"data/img/{index}.png").write_bytes(receipt().png())
        lines = [",".join(f"{value:.0f}" for value in quad.ravel()) for quad in receipt().quads]
        (tmp_path / f"data/gt/gt_{index}.txt").write_text("".join(f"{line},text\n" for line in lines))
    options = ["--judge", str(tmp_path / "data"), "--pages", "3", "--seconds", "4", "--sparsity", "0.1"]
    assert lighter.main([*options, "--output", str(tmp_path / "out")]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split("|")[1].strip() for row in rows] == ["default", "pruned by 0.1", "distilled"]
    assert (tmp_path / "out/distilled/detector.json").is_file()
    # The default network takes 1.08 GMAC.
    assert [float(row.split("|")[2]) < 0.8 for row in rows] == [False, True, True]
