# SPDX-License-Identifier: Apache-2.0
"""The shards of a job, and the folder that says which of them are done."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow", reason="the extra tables is not installed")

from ocdserve.batch.job import JOB_FILE, Job, Shard
from ocdserve.batch.sources import in_list, sources_of
from ocdserve.batch.storage import Folder, read
from ocdserve.contract import InvalidInputError, UnavailableError

NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=20)


def opened(folder: Path | str, inputs: list[str], size: int = 2, **provenance: Any) -> Job:
    return Job.open(Folder(str(folder)), lambda: inputs, size, provenance)[0]


def test_a_shard_is_named_by_its_position_and_its_inputs() -> None:
    # printf 'a\0b' | sha256sum
    assert Shard(0, ("a", "b")).file == "part-000000-59b271ae1bbc.parquet"
    assert Shard(0, ("ab",)).file != Shard(0, ("a", "b")).file
    assert Shard(7, ("a", "b")).file == "part-000007-59b271ae1bbc.parquet"


@settings(max_examples=10)
@given(names=NAMES, size=st.integers(1, 7), done=st.sets(st.integers(0, 20)))
def test_shards_hold_each_input_once_in_order_and_what_has_a_file_is_not_left(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], size: int, done: set[int]
) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("job")))
    job, _ = Job.open(folder, lambda: names, size, {})
    again, was_there = Job.open(folder, lambda: ["something", "else"], size, {})
    assert was_there
    assert again == job

    inputs = [name for shard in job.shards for name in shard.inputs]
    assert inputs == list(dict.fromkeys(names))
    assert all(len(shard.inputs) == size for shard in job.shards[:-1])
    assert len({shard.file for shard in job.shards}) == len(job.shards)
    for shard in job.shards:
        if shard.index in done:
            folder.put(shard.file, b"rows")
    assert [shard.index for shard in job.left(folder)] == [one.index for one in job.shards if one.index not in done]


def test_what_is_added_to_the_source_later_does_not_move_the_shards(tmp_path: Path) -> None:
    assert opened(tmp_path, ["b", "c"]).shards == opened(tmp_path, ["a", "b", "c"]).shards


def test_a_name_that_is_no_utf_8_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    assert opened(tmp_path, [name]).inputs == opened(tmp_path, ["x"]).inputs == (name,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "bb"}, 'was begun with digest "aa", and now it is "bb"'),
        ({"more": 1}, "was begun with more null, and now it is 1"),
        ({"size": 3}, "was begun with shard_size 2, and now it is 3"),
    ],
)
def test_a_job_of_other_options_is_not_continued(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    opened(tmp_path, ["a"], digest="aa")
    with pytest.raises(InvalidInputError, match=message):
        opened(tmp_path, ["a"], **({"digest": "aa"} | change))


def test_a_folder_of_other_files_and_an_empty_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no input"):
        opened(tmp_path, [])
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InvalidInputError, match=r"no job of `ocdserve batch`, but other files, such as photo\.jpg"):
        opened(tmp_path, ["a"])
    (tmp_path / JOB_FILE).write_bytes(b"PAR1")
    with pytest.raises(InvalidInputError, match=r"_job\.parquet is not the job file of `ocdserve batch`"):
        opened(tmp_path, ["a"])
    with pytest.raises(InvalidInputError, match="is a file; name a folder"):
        opened(tmp_path / "photo.jpg", ["a"])


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_write_a_file_one_has_written_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def link(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    folder = Folder(str(tmp_path / "new"))
    contents = [bytes([index]) * 100_000 for index in range(8)]
    start = threading.Barrier(8)

    def write(content: bytes) -> None:
        start.wait()
        folder.put("file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = folder.read("file")
    assert written in contents
    assert folder.names() == {"file"}
    if has_links:
        folder.put("file", b"later")
        assert folder.read("file") == written


def test_only_what_was_left_half_written_is_tidied(tmp_path: Path) -> None:
    for name in (".draft-part-0-12345678", "part-0", ".hidden"):
        (tmp_path / name).touch()
    Folder(str(tmp_path)).tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "part-0"]


def test_a_folder_of_any_storage_of_fsspec_holds_a_job() -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra batch is not installed")
    system = fsspec.filesystem("memory")
    system.pipe_file("/in/b.png", b"x")
    system.pipe_file("/in/deep/a.pdf", b"x")
    system.pipe_file("/in/notes.md", b"x")
    assert [source.name for source in sources_of(["memory://in"])] == ["memory:///in/b.png", "memory:///in/deep/a.pdf"]
    assert [source.name for source in sources_of(["memory://in"], recursive=False)] == ["memory:///in/b.png"]
    assert [source.name for source in sources_of(["memory://in/**/*.pdf"])] == ["memory:///in/deep/a.pdf"]
    [problem] = sources_of(["memory://in/*.gif"])
    assert problem.problem is not None and problem.problem.startswith("no image at 'memory://in/*.gif'; looked for")
    assert read("memory:///in/b.png") == b"x"
    with pytest.raises(InvalidInputError, match="cannot read the file"):
        read("memory:///in/none.png")
    with pytest.raises(InvalidInputError, match="is in no known kind of storage"):
        read("nowhere://x/y")
    system.pipe_file("/list.txt", "memory:///in/b.png\n\nä.png\n".encode())
    assert in_list("memory:///list.txt") == ["memory:///in/b.png", "ä.png"]

    folder = Folder("memory://out")
    job, _ = Job.open(folder, lambda: ["a", "b", "c"], 2, {})
    folder.put(job.shards[0].file, b"rows")
    assert Job.open(folder, list, 2, {}) == (job, True)
    assert [shard.index for shard in job.left(folder)] == [1]
    system.pipe_file("/out/.draft-x-1", b"")
    folder.tidy()
    assert folder.names() == {JOB_FILE, job.shards[0].file}
    system.rm("/out", recursive=True)
    system.rm("/in", recursive=True)


def test_storage_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UnavailableError, match=r"'s3://b/x' needs fsspec: .*ocdserve\[batch\]"):
        Folder("s3://b/x").names()


@pytest.mark.long
def test_in_s3_a_file_is_put_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="the extra batch is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    try:
        system = s3fs.S3FileSystem()
        system.mkdir("scans")
        system.pipe_file("scans/deep/a.png", b"x")
        assert [source.name for source in sources_of(["s3://scans"])] == ["s3://scans/deep/a.png"]
        with pytest.raises(InvalidInputError, match="cannot read the file: "):
            read("s3://scans/none.png")
        folder = Folder("s3://scans/out")
        job, _ = Job.open(folder, lambda: ["a", "b", "c"], 2, {})
        folder.put(job.shards[1].file, b"first")
        folder.put(job.shards[1].file, b"second")
        assert folder.read(job.shards[1].file) == b"first"
        assert Job.open(folder, list, 2, {}) == (job, True)
        assert [shard.index for shard in job.left(folder)] == [0]
        folder.tidy()
        assert folder.names() == {JOB_FILE, job.shards[1].file}
    finally:
        server.stop()
