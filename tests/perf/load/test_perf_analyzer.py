# SPDX-License-Identifier: Apache-2.0
"""Arguments of perf_analyzer, and how it is fetched. The program itself runs in tests/integration."""

import sys
from pathlib import Path

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load import perf_analyzer
from ocdserve.perf.load.perf_analyzer import AnalyzerRun, input_data, installed_program, levels_of, link_libraries


def test_an_image_is_sent_as_its_length_and_its_bytes_in_base64() -> None:
    # 03 00 00 00 61 62 63, and 00 00 00 00.
    assert input_data([b"abc", b""]) == {"data": [{"IMAGE": {"b64": "AwAAAGFiYw=="}}, {"IMAGE": {"b64": "AAAAAA=="}}]}


@pytest.mark.parametrize(
    ("text", "levels"), [("3", (3,)), ("1:4", (1, 2, 3, 4)), ("1:8:3", (1, 4, 7)), ("2:2", (2,)), ("4:4:9", (4,))]
)
def test_levels_are_written_as_perf_analyzer_writes_them(text: str, levels: tuple[int, ...]) -> None:
    assert levels_of(text) == levels


@pytest.mark.parametrize("text", ["", "0", "0:4", "4:1", "1:4:0", "1:2:3:4", "-1", "1.5", "many", "1:", "1:x"])
def test_invalid_levels_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="concurrency must be START, START:END or START:END:STEP"):
        levels_of(text)


def test_further_arguments_come_last_so_that_they_override() -> None:
    run = AnalyzerRun("grpc://host:8001", (b"image",), "ocdnet_fused", (1, 4), ("--request-count", "9"))
    command = run.command(Path("bin"), Path("in.json"), 4)
    assert command[:7] == ["bin", "-m", "ocdnet_fused", "-i", "grpc", "-u", "host:8001"]
    assert command[7:13] == ["--input-data", "in.json", "--shape", "IMAGE:1", "--concurrency-range", "4"]
    assert command[-2:] == ["--request-count", "9"]


@pytest.mark.parametrize("url", ["host:8001", "https://host:8000", "grpc://", "8001"])
def test_an_address_without_a_known_protocol_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="url must be grpc://HOST:PORT or http://HOST:PORT"):
        AnalyzerRun(url, (b"image",))


def test_a_run_without_images_or_clients_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one encoded image"):
        AnalyzerRun("grpc://host:1", ())
    with pytest.raises(InvalidInputError, match=r"each at least 1; got \(1, 0\)"):
        AnalyzerRun("grpc://host:1", (b"image",), levels=(1, 0))


def test_a_program_in_the_cache_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = tmp_path / "ocdserve" / "perf_analyzer-2.50.0"
    cached.parent.mkdir()
    cached.write_text("program")
    said: list[str] = []
    assert installed_program(said.append) == cached
    assert said == []


def test_a_fetched_program_is_put_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    installer = "import pathlib, sys; p = pathlib.Path(sys.argv[3], 'bin'); p.mkdir(); (p / 'perf_analyzer').touch()"
    monkeypatch.setattr(perf_analyzer, "_installer", lambda: [sys.executable, "-c", installer])
    said: list[str] = []
    assert installed_program(said.append) == tmp_path / "ocdserve" / "perf_analyzer-2.50.0"
    assert [path.name for path in (tmp_path / "ocdserve").iterdir()] == ["perf_analyzer-2.50.0"]
    assert len(said) == 1 and said[0].startswith("fetching perf_analyzer (tritonclient==2.50.0)")


@pytest.mark.parametrize(
    ("installer", "message"),
    [
        ("import sys; sys.exit('first line\\nno such index')", "cannot be installed: no such index"),
        ("pass", "for this machine has no perf_analyzer"),
    ],
)
def test_a_program_that_cannot_be_fetched_is_unavailable_and_leaves_nothing(
    installer: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(perf_analyzer, "_installer", lambda: [sys.executable, "-c", installer])
    with pytest.raises(UnavailableError, match=message):
        installed_program(lambda message: None)
    assert list((tmp_path / "ocdserve").iterdir()) == []


def test_libraries_are_linked_under_the_names_that_the_program_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    libraries = site / "nvidia_pytriton.libs"
    libraries.mkdir(parents=True)
    (site / "pytriton").mkdir()
    (site / "pytriton" / "__init__.py").touch()
    for name in ("libcudart-0123.so.12.6.77", "libb64-4567.so.0d", "libssl-89ab.so.3"):
        (libraries / name).write_text(name)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    target = tmp_path / "links"
    target.mkdir()
    link_libraries(target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "libcudart.so.12": "libcudart-0123.so.12.6.77",
        "libb64.so.0d": "libb64-4567.so.0d",
    }
    (libraries / "libb64-4567.so.0d").unlink()
    with pytest.raises(UnavailableError, match=r"needs libb64\.so\.0d, which comes with nvidia-pytriton"):
        link_libraries(tmp_path)
