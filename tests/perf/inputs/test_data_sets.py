# SPDX-License-Identifier: Apache-2.0
"""Reading data sets into memory."""

import io
from pathlib import Path

import pytest
from PIL import Image

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage, first_jpeg, load_data_sets, photographs


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


def write_set(folder: Path, *stems: str) -> Path:
    for part in ("img", "gt"):
        (folder / part).mkdir(parents=True)
    for stem in stems:
        (folder / "img" / f"{stem}.png").write_bytes(encoded("PNG", (8, 8)))
        (folder / "gt" / f"gt_{stem}.txt").write_text("0,0,8,0,8,4,0,4,word\n")
    return folder


def labelled(name: str, data: bytes) -> LabelledImage:
    return LabelledImage(name, data, Truth((), ()))


def test_a_folder_of_data_sets_stands_for_all_of_them(tmp_path: Path) -> None:
    write_set(tmp_path / "scene", "a", "b")
    write_set(tmp_path / "pages", "c")
    (tmp_path / "notes").mkdir()
    loaded = load_data_sets([tmp_path])
    assert [(data.name, [image.name for image in data.images]) for data in loaded] == [
        ("pages", ["c.png"]),
        ("scene", ["a.png", "b.png"]),
    ]
    assert loaded[0].images[0].encoded == (tmp_path / "pages" / "img" / "c.png").read_bytes()
    assert len(loaded[0].images[0].truth.polygons) == 1


def test_a_data_set_and_a_folder_of_them_can_be_given_together(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", "a")
    write_set(tmp_path / "more" / "two", "b")
    assert [data.name for data in load_data_sets([one, tmp_path / "more"])] == ["one", "two"]


def test_a_folder_without_data_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a data set: it has no folder img/"):
        load_data_sets([tmp_path])


def test_images_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="2 images with 1 different names"):
        DataSet("twins", (labelled("a", b""), labelled("a", b"")))


def test_the_first_jpeg_of_a_size_is_found_among_other_images() -> None:
    wanted = labelled("wanted", encoded("JPEG", (1280, 720)))
    others = DataSet(
        "others", (labelled("a", encoded("PNG", (1280, 720))), labelled("b", encoded("JPEG", (720, 1280))))
    )
    assert first_jpeg([others, DataSet("set", (wanted,))], 1280, 720) is wanted
    assert first_jpeg([others], 1280, 720) is None


def test_photographs_are_the_jpeg_files_of_each_data_set_in_turn(tmp_path: Path) -> None:
    for name in ("one/img/b.jpg", "one/img/a.JPEG", "one/img/c.png", "one/img/d.jpg", "two/img/z.jpg", "three/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert photographs(tmp_path) == [
        ("a.JPEG", b"one/img/a.JPEG"),
        ("z.jpg", b"two/img/z.jpg"),
        ("b.jpg", b"one/img/b.jpg"),
        ("d.jpg", b"one/img/d.jpg"),
    ]
    assert [name for name, _ in photographs(tmp_path / "two")] == ["z.jpg"]
    assert photographs(tmp_path / "three") == photographs(None) == []
