# SPDX-License-Identifier: Apache-2.0
"""The engine Ray on this machine, and `DetectBatch` in Ray's own pipelines."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ocdserve.batch import DetectBatch
from ocdserve.batch.job import Shard
from ocdserve.batch.on_ray import RayOptions, on_ray
from ocdserve.batch.storage import Folder
from ocdserve.batch.work import Step, Work
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.inputs.pictures import demo_pictures

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray warns of itself


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(6):
        demo_pictures()[index % 3].image.resize((640, 480 + index)).save(folder / f"{index}.jpg")
    (folder / "bad.png").write_bytes(b"bad")
    return folder


@pytest.fixture
def one_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of one CPU, whose workers find this test's module."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_writes_the_files_of_the_local_engine(pictures: Path, tmp_path: Path) -> None:
    options = ["--bundle", "fast", "--shard-size", "2", "--threads", "1", "--quiet"]
    assert main(["batch", str(pictures), "--output", str(tmp_path / "local"), *options]) == 0
    assert main(["batch", str(pictures), "--output", str(tmp_path / "ray"), "--engine", "ray", *options]) == 0
    local, by_ray = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("local", "ray")
    )
    assert len(local) == 5
    assert by_ray == local


def test_a_cluster_without_room_ends_the_job_with_an_error(one_cpu: None, tmp_path: Path) -> None:
    @ray.remote(num_cpus=1)
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.here.remote())
    work = Work(Folder(str(tmp_path)), DetectBatch(bundle="fast"), {})
    with pytest.raises(UnavailableError, match=r"no progress for 3 s: of 1 workers of 1 CPUs .* 0 of 1 CPUs free"):
        list(on_ray(work, [Shard(0, ("a.png",))], RayOptions(stall_s=3)))
    with pytest.raises(UnavailableError, match="a worker needs 4 CPUs and 0 GPUs, and the cluster has 1 CPUs"):
        list(on_ray(Work(work.folder, DetectBatch(threads=4), {}), [Shard(0, ("a.png",))], RayOptions()))


def test_options_that_are_not_valid_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"gpus must be a fraction of one GPU or a whole number; got 1\.5"):
        RayOptions(gpus=1.5)
    with pytest.raises(InvalidInputError, match="stall_s must be above 0 seconds; got 0"):
        RayOptions(stall_s=0)


@dataclass(frozen=True)
class Deadly(Work):
    """Ends its process at shard 0, and loads nothing."""

    def do(self, shard: Shard) -> Iterator[Step]:
        if shard.index == 0:
            os._exit(1)
        yield Step(shard, 1, is_done=True)


@dataclass(frozen=True)
class Loaded(DetectBatch):
    """Needs no detector."""

    def load(self) -> None:
        """Load nothing."""


def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_are_done(one_cpu: None) -> None:
    shards = [Shard(index, (f"{index}.png",)) for index in range(3)]
    steps = list(on_ray(Deadly(Folder("out"), Loaded(), {}), shards, RayOptions()))
    assert sorted(step.shard.index for step in steps if step.is_done) == [1, 2]
    [failure] = [step for step in steps if step.failure]
    assert failure.shard == shards[0] and failure.failure is not None and "its worker died" in failure.failure


def test_ray_data_takes_the_batch(one_cpu: None, pictures: Path) -> None:
    images = ray.data.read_binary_files(str(pictures), include_paths=True, override_num_blocks=1)
    detect = DetectBatch(bundle="fast", image="path", content="bytes")
    found = images.map_batches(detect, batch_format="pyarrow", batch_size=4).take_all()
    rows = {Path(row["image"]).name: row for row in found}
    assert sorted(rows) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "bad.png"]
    assert rows["bad.png"]["error"].startswith("not an image")
    assert all(len(rows[f"{index}.jpg"]["scores"]) for index in range(6))
