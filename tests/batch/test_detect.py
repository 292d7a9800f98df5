# SPDX-License-Identifier: Apache-2.0
"""`DetectBatch`: what goes in and comes out, for the engines of others."""

import pickle
from collections.abc import Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend import Detector
from ocdserve.batch import DetectBatch, detect
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.inputs.pictures import receipt
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome

COLUMNS = ["image", "page", "width", "height", "quads", "scores", "polygons", "error"]


class FakeDetector:
    """Finds one word in what does not begin with "bad", which is no image, or with "gpu", whose GPU fails."""

    def detect_many(self, images: Iterable[bytes], **options: Any) -> Iterator[Outcome[Any]]:
        assert options == {"concurrency": 2, "max_side": 640, "box_thresh": 0.5}
        for index, image in enumerate(images):
            if image.startswith(b"bad"):
                yield Outcome(index, image, error=InvalidInputError("not an\nimage"))
            elif image.startswith(b"gpu"):
                yield Outcome(index, image, error=UnavailableError("the GPU fails"))
            else:
                quad = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
                polygon = (np.array([[0, 1], [2, 3], [4, 5]], np.float32),)
                score = np.array([0.5], np.float32)
                yield Outcome(index, image, detections=Detections(quad, score, 80, 60, polygons=polygon))


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> DetectBatch:
    monkeypatch.setattr(detect, "_detector", lambda *_: FakeDetector())
    return DetectBatch(max_side=640, parameters={"box_thresh": 0.5}, content="bytes")


def found(name: str) -> dict[str, Any]:
    quad = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    rest = {"quads": [quad], "scores": [0.5], "polygons": [quad[:6]], "error": None}
    return {"image": name, "page": None, "width": 80, "height": 60} | rest


def failed(name: str, error: str) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {"image": name, "error": error}


def test_a_batch_of_columns_comes_back_as_columns(batch: DetectBatch) -> None:
    columns = batch({"image": np.array(["a", "b"], object), "bytes": np.array([b"x", b"bad"], object)})
    assert list(columns) == COLUMNS
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert rows == [found("a"), failed("b", "not an image")]


def test_a_table_comes_back_as_a_table(batch: DetectBatch) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra tables is not installed")
    table = batch(arrow.table({"image": ["a", "b"], "bytes": [b"bad", b"x"]}))
    assert table.to_pylist() == [failed("a", "not an image"), found("b")]
    assert str(table.schema.field("page").type) == "int32"
    assert str(table.schema.field("quads").type) == "list<item: list<item: float>>"


def test_data_frames_come_back_as_data_frames(batch: DetectBatch) -> None:
    pandas = pytest.importorskip("pandas", reason="the extra ray is not installed")
    frame = pandas.DataFrame({"image": ["a", "b"], "bytes": [b"x", b"bad"]})
    one, two = batch.frames(iter([frame, frame[:1]]))
    assert one["error"].tolist() == [None, "not an image"]
    assert two.to_dict("records") == [found("a")]


def test_a_list_of_names_is_read(batch: DetectBatch, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    names = [str(tmp_path / "a"), str(tmp_path / "none"), "https://host/x.jpg"]
    assert batch(names) == [
        found(names[0]),
        failed(names[1], "cannot read the file: No such file or directory"),
        failed(names[2], "a batch fetches nothing from the web; copy the image to a folder or to storage"),
    ]


def test_a_failure_of_the_detector_is_no_row(batch: DetectBatch) -> None:
    with pytest.raises(UnavailableError, match="the GPU fails"):
        batch({"image": ["a"], "bytes": [b"gpu"]})


def test_what_is_not_valid_is_refused(batch: DetectBatch) -> None:
    with pytest.raises(InvalidInputError, match="no column 'bytes', but image, byte; did you mean"):
        batch({"image": ["a"], "byte": [b"x"]})
    with pytest.raises(InvalidInputError, match=r"a batch must be a pyarrow table.*; got int"):
        batch(5)
    with pytest.raises(InvalidInputError, match="parameters must not hold page"):
        DetectBatch(parameters={"page": 2})
    with pytest.raises(InvalidInputError, match="concurrency"):
        DetectBatch(concurrency=0)


def test_another_bundle_than_that_of_the_job_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"has the digest \w{16}, and the job was begun with 00"):
        DetectBatch(bundle="fast", digest="00").load()


def test_it_travels_to_a_pool_and_finds_what_the_detector_finds(tmp_path: Path) -> None:
    names = [str(tmp_path / "receipt.jpg"), str(tmp_path / "bad.jpg")]
    receipt().image.save(names[0])
    Path(names[1]).write_bytes(b"bad")
    batch = DetectBatch(bundle="fast")
    assert pickle.loads(pickle.dumps(batch)) == batch

    with get_context("spawn").Pool(1) as pool:
        [[right], [wrong]] = pool.map(batch, [names[:1], names[1:]])

    expected = Detector.load("fast", threads=1).detect(names[0])
    assert len(expected) > 20
    assert right["quads"] == expected.quads.reshape(-1, 8).tolist()
    assert right["scores"] == expected.scores.tolist()
    assert wrong["error"].startswith("not an image that can be read")
