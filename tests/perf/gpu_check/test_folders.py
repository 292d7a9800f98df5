# SPDX-License-Identifier: Apache-2.0
"""The folders: their sizes, what comes first, what is kept between calls; the scripts around them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocdserve.perf.gpu_check import folders
from ocdserve.perf.gpu_check.folders import MIB, FolderError, Piece, arrange, join, main, pack, plan_text
from ocdserve.perf.gpu_check.plan import FOLDER_MIB, TRANSFER_MIB

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = REPOSITORY / "perf" / "gpu_check"

# Bytes that `pack.sh --data` with 50 photographs wrote, rounded up to tenths of a MiB.
PACKED = {
    "base/answered-maps.npz": 3.8,
    "base/built": 4.6,
    "base/data": 12.4,
    "base/maps-of-one-size.npz": 3.3,
    "base/networks": 4.8,
    "base/wheels": 8.7,
    "triton/wheels/numpy.whl": 17.2,
    "triton/wheels/nvidia_pytriton.whl": 52.9,
}


def run(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """Groups of 0.3, 1.5 and 3 MiB: the last file is larger than a folder of 2 MiB."""
    files = {"base/wheels/small.whl": 300, "triton/wheels/server.whl": 1500, "jpeg/wheels/codec.whl": 3000}
    for index, (name, kib) in enumerate(files.items()):
        file = tmp_path / "collected" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes((index + number) % 251 for number in range(1024)) * kib)
    return tmp_path / "collected"


@pytest.fixture
def packed(collected: Path, tmp_path: Path) -> list[Path]:
    target = tmp_path / "packed"
    target.mkdir()
    return [target / str(number + 1) for number in range(pack(collected, target, 2))]


def test_the_default_set_is_three_folders_and_the_first_one_suffices_without_triton() -> None:
    arranged = arrange({name: round(size * MIB) for name, size in PACKED.items()}, FOLDER_MIB * MIB - MIB // 2)
    folders = {name: [piece.folder for piece in pieces] for name, pieces in arranged.items()}
    base = {name: [1] for name in PACKED if name.startswith("base")}
    assert folders == {**base, "triton/wheels/numpy.whl": [2], "triton/wheels/nvidia_pytriton.whl": [2, 3]}


def test_what_every_part_needs_comes_before_triton(tmp_path: Path) -> None:
    for group in ("base", "host", "jpeg", "triton"):
        (tmp_path / "collected" / group).mkdir(parents=True)
        (tmp_path / "collected" / group / "wheel.whl").write_bytes(bytes(MIB))
    (tmp_path / "packed").mkdir()
    assert pack(tmp_path / "collected", tmp_path / "packed", 2) == 4
    carried = [sorted(path.parent.name for path in (tmp_path / "packed" / n).rglob("*.whl")) for n in "1234"]
    assert carried == [["base"], ["host"], ["triton"], ["jpeg"]]


def test_a_folder_and_the_checkout_fit_into_a_transfer() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    files = [REPOSITORY / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    size = sum(file.stat().st_size for file in files if file.is_file())
    assert FOLDER_MIB * MIB + size < TRANSFER_MIB * MIB


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": 4, "b": 7, "c": 5, "d": 1}, {"a": [(1, 0, 4)], "b": [(2, 0, 7)], "c": [(1, 0, 5)], "d": [(1, 0, 1)]}),
        ({"a": 4, "b": 23}, {"a": [(1, 0, 4)], "b": [(1, 0, 6), (2, 6, 10), (3, 16, 7)]}),
        ({"a": 10, "b": 11, "c": 9}, {"a": [(1, 0, 10)], "b": [(2, 0, 10), (3, 10, 1)], "c": [(3, 0, 9)]}),
        ({}, {}),
    ],
)
def test_files_go_into_the_first_folder_with_room(
    sizes: dict[str, int], expected: dict[str, list[tuple[int, int, int]]]
) -> None:
    assert arrange(sizes, 10) == {name: tuple(Piece(*one) for one in pieces) for name, pieces in expected.items()}


def test_no_folder_is_larger_than_the_limit_and_all_files_come_back(
    packed: list[Path], collected: Path, tmp_path: Path
) -> None:
    assert len(packed) == 4
    for folder in packed:
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 2 * MIB

    assert join(tmp_path / "work", packed) == {"base": [], "triton": [], "jpeg": []}

    for file in collected.rglob("*.whl"):
        assert (tmp_path / "work" / "carried" / file.relative_to(collected)).read_bytes() == file.read_bytes()


def test_each_call_brings_a_folder_and_keeps_what_came_before(packed: list[Path], tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert join(work, packed[:1]) == {"base": [], "triton": [2], "jpeg": [2, 3, 4]}
    (packed[0] / "base" / "wheels" / "small.whl").unlink()
    assert join(work, packed[1:2]) == {"base": [], "triton": [], "jpeg": [3, 4]}
    assert join(work, packed[2:]) == {"base": [], "triton": [], "jpeg": []}
    assert join(work, []) == {"base": [], "triton": [], "jpeg": []}
    assert (work / "carried" / "base" / "wheels" / "small.whl").stat().st_size == 300 * 1024


def test_damage_is_noticed(packed: list[Path], tmp_path: Path) -> None:
    file = packed[0] / "base" / "wheels" / "small.whl"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(FolderError, match=r"base/wheels/small\.whl is not what was packed; carry folder 1 again"):
        join(tmp_path / "work", packed[:1])
    file.write_bytes(file.read_bytes()[:-1])
    assert join(tmp_path / "other", packed[:1])["base"] == [1]


def test_folders_of_two_packings_are_not_mixed(packed: list[Path], collected: Path, tmp_path: Path) -> None:
    join(tmp_path / "work", packed[:1])
    (collected / "base" / "wheels" / "small.whl").write_bytes(b"other")
    other = tmp_path / "other"
    other.mkdir()
    pack(collected, other, 2)
    with pytest.raises(FolderError, match=r"is of another packing than what .* holds: remove"):
        join(tmp_path / "work", [other / "1"])


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["join", str(tmp_path / "work"), str(tmp_path)]) == 2
    assert f"{tmp_path} holds no MANIFEST.json; perf/gpu_check/pack.sh makes such a folder" in capsys.readouterr().err
    assert main(["join", str(tmp_path / "work")]) == 2
    assert "holds nothing yet: name a folder" in capsys.readouterr().err
    assert main(["pack", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no folder 'base'; perf/gpu_check/pack.sh makes it" in capsys.readouterr().err


def test_the_plan_names_parts_times_groups_and_sizes(packed: list[Path]) -> None:
    lines = plan_text(packed[:1]).splitlines()
    assert (
        "exactness       50 s  base: boxes of each map, bytes of each resize and line, compared with the CPU's" in lines
    )
    assert "served          50 s  base, triton: JPEG to quads through Triton" in lines
    assert "together       360 s  of 360" in lines
    assert lines[-1].startswith("folder 1") and "MiB of 48: base 0.3" in lines[-1]


def test_the_plan_is_printed_without_any_package(tmp_path: Path) -> None:
    bare = [sys.executable, "-S", "-m", folders.__name__, "plan"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "perf")}
    ended = subprocess.run(bare, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "together" in ended.stdout


@pytest.mark.parametrize("script", ["run.sh", "pack.sh"])
def test_an_unknown_option_shows_the_usage(script: str) -> None:
    ended = run(script, "--nonsense")
    assert ended.returncode in (1, 2)
    assert f"unknown option --nonsense; usage: {script} [" in ended.stderr


def test_another_python_is_refused(packed: list[Path], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "env"):
        (tools / name).symlink_to(next(path for path in _on_path(name)))
    ended = run("run.sh", str(packed[0]), PATH=str(tools), PYTHON="")
    assert ended.returncode == 2
    assert "Python 3.12 is needed" in ended.stderr


def test_groups_are_lists_of_requirements() -> None:
    groups = {path.stem: path.read_text("utf-8").splitlines() for path in (SCRIPTS / "requirements").iterdir()}
    assert {"base", "host", "pycuda", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "triton", "jpeg"} <= set(groups)
    for lines in groups.values():
        assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
        assert not any("://" in line or line.startswith("-") for line in lines)


def test_what_decodes_jpeg_is_carried() -> None:
    """Without simplejpeg the check would run all the same, and time Pillow."""
    carried = [(SCRIPTS / "requirements" / f"{group}.txt").read_text("utf-8") for group in ("base", "host")]
    assert "\nsimplejpeg" in carried[0]
    assert "\npillow" in carried[1]


def _on_path(name: str) -> list[Path]:
    return [path for folder in os.environ["PATH"].split(os.pathsep) if (path := Path(folder) / name).is_file()]
