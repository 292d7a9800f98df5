# SPDX-License-Identifier: Apache-2.0
"""The stages of an evaluation side by side: order, bounds, failures, and what the network gets."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tao_reference

from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.builder.tao.inputs.pipeline import (
    LoaderOptions,
    NetworkImage,
    ReadOptions,
    Unreadable,
    read_image,
    run_pipeline,
)
from ocdserve.contract import InvalidInputError

FIXED = ResizePolicy(kind="fixed", width=96, height=64)
FRAME = Frame((1, 1), (1, 1), (1, 1))


class Doubling:
    """Twice the pixels of each image, and how many images came at a time."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, images: Sequence[Any]) -> list[Any]:
        self.batches.append(len(images))
        return [2 * image for image in images]


def read_number(path: Path) -> NetworkImage | Unreadable:
    """The number that a path names, as an image."""
    if path.name == "bad":
        return Unreadable(path, "it is bad")
    return NetworkImage(np.array([int(path.name)]), FRAME)


def finish_number(index: int, image: NetworkImage, probability: Any) -> tuple[int, int, int]:
    return index, int(image.pixels[0]), int(probability[0])


def paths_of(*names: Any) -> list[Path]:
    return [Path(str(name)) for name in names]


class TestOrder:
    @pytest.mark.parametrize("batch", [1, 3, 50])
    @pytest.mark.parametrize("finishers", [1, 3])
    def test_results_are_in_the_order_of_the_paths(self, batch: int, finishers: int) -> None:
        network = Doubling()
        options = LoaderOptions(batch, workers=3)
        paths = paths_of(*range(20))
        results = list(run_pipeline(paths, read_number, network, finish_number, options, finishers))
        assert results == [(index, index, 2 * index) for index in range(20)]
        assert max(network.batches) == min(batch, 20) and sum(network.batches) == 20

    def test_unreadable_images_keep_their_position_among_the_results(self) -> None:
        paths = paths_of("bad", 1, "bad", "bad", 4)
        results = list(run_pipeline(paths, read_number, Doubling(), finish_number, LoaderOptions(2)))
        unreadable = Unreadable(Path("bad"), "it is bad")
        assert results == [unreadable, (1, 1, 2), unreadable, unreadable, (4, 4, 8)]

    def test_no_paths_give_no_results(self) -> None:
        assert list(run_pipeline([], read_number, Doubling(), finish_number, LoaderOptions())) == []


class TestBounds:
    def test_as_many_images_are_read_at_a_time_as_there_are_workers(self) -> None:
        """Fault 20."""
        together = threading.Barrier(3, timeout=60)

        def read(path: Path) -> NetworkImage | Unreadable:
            together.wait()
            return read_number(path)

        results = list(run_pipeline(paths_of(*range(6)), read, Doubling(), finish_number, LoaderOptions(1, workers=3)))
        assert len(results) == 6

    def test_at_most_a_few_batches_are_read_ahead(self) -> None:
        read_so_far = 0
        lock = threading.Lock()

        def read(path: Path) -> NetworkImage | Unreadable:
            nonlocal read_so_far
            with lock:
                read_so_far += 1
            return read_number(path)

        options = LoaderOptions(4, workers=2)
        results = run_pipeline(paths_of(*range(1000)), read, Doubling(), finish_number, options)
        for taken in range(1, 30):
            next(results)
            # Two batches and two workers ahead, two batches and one result behind, and the batch in the network.
            assert read_so_far <= taken + 10 + 9 + 4
        results.close()  # type: ignore[attr-defined]

    def test_a_failing_stage_ends_the_pipeline_and_all_threads(self) -> None:
        before = threading.active_count()

        def fail(*_: Any) -> Any:
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            list(run_pipeline(paths_of(*range(50)), read_number, Doubling(), fail, LoaderOptions(2)))
        with pytest.raises(RuntimeError, match="no more"):
            list(run_pipeline(paths_of(*range(50)), fail, Doubling(), finish_number, LoaderOptions(2)))
        assert threading.active_count() == before

    @pytest.mark.parametrize("values", [{"batch_size": 0}, {"workers": -1}])
    def test_numbers_out_of_range_are_refused(self, values: dict[str, int]) -> None:
        with pytest.raises(InvalidInputError, match=f"must be at least .*got {next(iter(values.values()))}"):
            LoaderOptions(**values)


class TestReading:
    @pytest.fixture
    def photograph(self, tmp_path: Path, rng: np.random.Generator) -> Path:
        noise = cv2.GaussianBlur(rng.integers(0, 256, (120, 150, 3)).astype(np.uint8), (0, 0), 2)
        assert cv2.imwrite(str(tmp_path / "a.png"), noise)
        return tmp_path / "a.png"

    @pytest.mark.parametrize("mode", ["BGR", "RGB"])
    def test_float_pixels_equal_tao_s(self, photograph: Path, mode: Any) -> None:
        image = read_image(photograph, ReadOptions(FIXED, mode, is_float=True))
        assert isinstance(image, NetworkImage)
        # The network turns what it takes for RGB into BGR, then subtracts and divides.
        network_input = ((image.pixels[..., ::-1] - tao_reference.MEANS) / 255).transpose(2, 0, 1)
        expected = tao_reference.network_input(photograph, 96, 64, mode)[0]
        np.testing.assert_allclose(network_input, expected, atol=1e-6)
        assert (image.frame.source, image.frame.network) == ((120, 150), (64, 96))

    def test_bytes_are_the_rounded_fractions(self, photograph: Path) -> None:
        exact = read_image(photograph, ReadOptions(FIXED, is_float=True))
        served = read_image(photograph, ReadOptions(FIXED))
        assert isinstance(exact, NetworkImage) and isinstance(served, NetworkImage)
        assert served.pixels.dtype == np.uint8
        assert np.abs(served.pixels - exact.pixels).max() < 1

    def test_a_letterbox_is_filled_with_black(self, photograph: Path) -> None:
        policy = ResizePolicy(kind="letterbox", width=96, height=64)
        exact = read_image(photograph, ReadOptions(policy, is_float=True))
        assert isinstance(exact, NetworkImage)
        assert exact.frame.content == (64, 80)
        assert exact.pixels.shape == (64, 96, 3)
        assert not exact.pixels[:, 80:].any() and exact.pixels[:, :80].all(axis=-1).mean() > 0.9

    def test_the_picture_is_kept_only_on_request(self, photograph: Path) -> None:
        kept = read_image(photograph, ReadOptions(FIXED, "GRAY", keeps_source=True))
        dropped = read_image(photograph, ReadOptions(FIXED))
        assert isinstance(kept, NetworkImage) and isinstance(dropped, NetworkImage)
        assert dropped.source is None and kept.source is not None
        assert kept.source[..., ::-1].tolist() == np.asarray(cv2.imread(str(photograph))).tolist()

    def test_a_missing_or_damaged_file_is_reported(self, photograph: Path, tmp_path: Path) -> None:
        assert read_image(tmp_path / "b.png", ReadOptions(FIXED)) == Unreadable(
            tmp_path / "b.png", "No such file or directory"
        )
        (tmp_path / "c.png").write_bytes(photograph.read_bytes()[:400])
        damaged = read_image(tmp_path / "c.png", ReadOptions(FIXED))
        assert isinstance(damaged, Unreadable) and "truncated or damaged" in damaged.reason
