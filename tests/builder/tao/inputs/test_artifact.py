# SPDX-License-Identifier: Apache-2.0
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from ocdserve.builder.tao.inputs.artifact import CACHE_VARIABLE, open_artifact

artifact_module = importlib.import_module("ocdserve.builder.tao.inputs.artifact")


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The networks that were checked."""
    found: list[Path] = []
    original = artifact_module.describe

    def describe(path: Path, preset: str) -> object:
        found.append(path)
        return original(path, preset)

    monkeypatch.setattr(artifact_module, "describe", describe)
    return found


@pytest.fixture
def network(tmp_path: Path, small_network: Callable[..., onnx.ModelProto]) -> Path:
    onnx.save(small_network(), str(tmp_path / "raw.onnx"))
    return tmp_path / "raw.onnx"


def test_a_raw_onnx_is_checked_once(
    network: Path,
    small_network: Callable[..., onnx.ModelProto],
    described: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    first, second = open_artifact(network), open_artifact(network)
    assert first == second and described == [network]
    assert first.bundle.spec.name == "raw" and first.max_batch is None
    onnx.save(small_network(scale=0.5), str(network))
    other = open_artifact(network)
    assert described == [network, network]
    assert other.bundle.model_path.read_bytes() != first.bundle.model_path.read_bytes()


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    network: Path, described: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert open_artifact(network).bundle.spec.name == "raw"
    assert described == [network]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_entry_of_the_cache_is_made_again(
    damage: Callable[[Path], object], network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    file = open_artifact(network).bundle.model_path
    content = file.read_bytes()
    damage(file)
    assert open_artifact(network).bundle.model_path == file
    assert file.read_bytes() == content


def test_the_cache_keeps_the_networks_that_were_used_last(
    network: Path, described: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    kept = open_artifact(network).bundle.model_path
    now = time.time()
    for days in range(12):
        (cache / f"unused for {days} days").mkdir()
        os.utime(cache / f"unused for {days} days", (now - 86400 * days,) * 2)
    os.utime(kept.parent, (now - 86400 * 100,) * 2)
    # Using it again makes it the newest; the thirteen that there are become ten when another is written.
    assert open_artifact(network).bundle.model_path == kept
    second = network.with_name("second.onnx")
    second.write_bytes(network.read_bytes())
    written = open_artifact(second).bundle.model_path
    expected = {kept.parent, written.parent, *(cache / f"unused for {days} days" for days in range(8))}
    assert set(cache.iterdir()) == expected
    assert described == [network, second]


def test_a_cached_network_that_may_be_about_to_be_opened_is_kept(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    for index in range(20):
        (cache / str(index)).mkdir(parents=True)
    open_artifact(network)
    assert len(list(cache.iterdir())) == 21
