# SPDX-License-Identifier: Apache-2.0
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from shutil import disk_usage
from types import SimpleNamespace
from typing import Any

import pytest

from ocdserve.backend.doctor import examine
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import preflight
from ocdserve.backend.serve.preflight import check_glibc, check_numpy, check_python, check_stub
from ocdserve.contract import Limits, UnavailableError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_pythons_that_triton_supports_pass(version: tuple[int, int]) -> None:
    check_python(version)


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (3, 14)])
def test_other_pythons_are_refused_with_the_remedy(version: tuple[int, int]) -> None:
    with pytest.raises(UnavailableError, match=rf"this is 3\.{version[1]}\).*uv venv -p 3\.12"):
        check_python(version)


@pytest.mark.parametrize("version", ["1.24.0", "1.26.4"])
def test_numpy_1_passes(version: str) -> None:
    check_numpy(version)


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1", "10.0"])
def test_numpy_2_and_later_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(UnavailableError, match=rf"installed: {version}\).*pip install 'numpy<2'"):
        check_numpy(version)


def test_a_new_python_is_the_reason_for_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "check_python", lambda: check_python((3, 13)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for check in (preflight.pytriton_directory, lambda: check_numpy("2.3.1")):
        with pytest.raises(UnavailableError, match=r"^the server needs Python 3\.10, 3\.11 or 3\.12 \(this is 3\.13\)"):
            check()


def test_doctor_names_a_new_python_for_everything_that_it_rules_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "check_python", lambda: check_python((3, 13)))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    findings = {one.name: one for one in examine()}
    for name in ("Python for the server", "numpy for the server", "Triton"):
        assert not findings[name].ok and "(this is 3.13)" in findings[name].remedy


@pytest.mark.parametrize(
    ("cuda", "installed", "remedy"),
    [
        (None, {}, "install NVIDIA's driver: 580 or newer, or 525 for CUDA 12"),
        ((13, 0), {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0.106", "tensorrt-rtx-cu13": "1.7.1.116"}, ""),
        ((12, 8), {"onnxruntime-gpu": "1.26.0", "tensorrt": "10.13.0.35"}, ""),
        (
            (12, 8),
            {"onnxruntime-gpu": "1.27.0", "tensorrt": "10.13.2.6", "tensorrt-rtx-cu13": "1.5.0.114"},
            "onnxruntime-gpu 1.27.0, tensorrt 10.13.2.6, tensorrt-rtx-cu13 1.5.0.114 needs driver 580 or newer; "
            "for this one: pip install 'onnxruntime-gpu[cuda,cudnn]<1.27' 'tensorrt<10.13' 'tensorrt-rtx-cu12'",
        ),
        (
            (12, 0),
            {"tensorrt": "11.4.0.106"},
            "tensorrt 11.4.0.106 needs driver 580 or newer; for this one: pip install 'tensorrt<10.13'",
        ),
    ],
    ids=["none", "new", "old with old packages", "old with new ones", "oldest"],
)
def test_doctor_names_the_packages_that_a_driver_is_too_old_for(
    monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int] | None, installed: dict[str, str], remedy: str
) -> None:
    def version(name: str) -> str:
        if name in ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13") and name not in installed:
            raise PackageNotFoundError(name)
        return installed.get(name, "1.0")

    monkeypatch.setattr("ocdserve.backend.device.probe.cuda_version", lambda: cuda)
    monkeypatch.setattr("importlib.metadata.version", version)

    (finding,) = (one for one in examine() if one.name == "GPU driver")

    assert finding.ok == (remedy == "")
    assert finding.ok or finding.remedy == remedy


@pytest.mark.parametrize("version", ["2.35", "2.36", "3.0"])
def test_a_recent_glibc_passes(version: str) -> None:
    check_glibc(("glibc", version))


@pytest.mark.parametrize(("name", "version"), [("glibc", "2.34"), ("glibc", "2.4"), ("", ""), ("musl", "2.40")])
def test_an_old_glibc_or_another_library_is_refused(name: str, version: str) -> None:
    with pytest.raises(UnavailableError, match=r"needs glibc 2\.35 or later"):
        check_glibc((name, version))


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


def test_a_stub_that_rejects_its_arguments_works(tmp_path: Path) -> None:
    check_stub(script(tmp_path / "stub", "echo 'Expected 9 arguments, found 1 arguments.' >&2; exit 1"), {})


def test_a_stub_without_libpython_names_library_and_package(tmp_path: Path) -> None:
    library = f"libpython{VERSION}.so.1.0"
    stub = script(tmp_path / "stub", f"echo 'loading shared libraries: {library}: No such file' >&2; exit 127")
    with pytest.raises(
        UnavailableError, match=rf"{library} is missing.*apt-get install libpython{VERSION}`.*uv python"
    ):
        check_stub(stub, {})


def test_a_stub_that_fails_otherwise_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"does not start here \(exit status 3\): out of luck"):
        check_stub(script(tmp_path / "stub", "echo out of luck; exit 3"), {})


def test_a_full_disk_is_named_with_what_is_free_and_needed_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    for name, config in (
        ("a", 'name: "a"\nbackend: "python"\ninstance_group [ { kind: KIND_CPU count: 2 } ]'),
        ("b", 'backend: "python"'),
        ("c", 'platform: "ensemble"'),
    ):
        (repository / name).mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config)
    preflight.check_room(repository, tmp_path)

    monkeypatch.setattr(preflight, "SEGMENT_BYTES", 1 << 50)
    with pytest.raises(
        UnavailableError,
        match=r"^/dev/shm has [\d,]+ bytes free, too few for the models' Python processes \(3,377,699,720,527,872\): "
        r"free some, or mount more there \(docker run --shm-size=1g; in Kubernetes an emptyDir with medium: Memory\)$",
    ):
        preflight.check_room(repository, tmp_path)
    monkeypatch.setattr(preflight, "WORKSPACE_BYTES", 1 << 50)
    with pytest.raises(UnavailableError, match=rf"^{tmp_path} has .* the server's own files .* or set TMPDIR to "):
        preflight.check_room(repository, tmp_path)


@pytest.mark.parametrize(
    ("options", "size", "needed"),
    [
        ({}, 64 << 20, "268,435,456"),
        ({"limits": Limits(max_pixels=20_000_000)}, (256 << 20) - 1, "268,435,456"),
        # Two processes of each model with the network, one of each of the others, with 4 MiB.
        ({"instances": 2, "limits": Limits(max_pixels=100_000_000)}, 256 << 20, "325,165,824"),
    ],
)
def test_shared_memory_must_hold_images_under_load_and_the_largest_that_is_allowed(
    options: dict[str, Any], size: int, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = publish(PublishOptions(tmp_path / "models", **options))
    # A killed server has left something.
    sizes = SimpleNamespace(total=size, free=40 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: sizes if str(folder) == "/dev/shm" else disk_usage(folder))
    with pytest.raises(
        UnavailableError, match=rf"^/dev/shm has a size of {size:,} bytes, .* \({needed}\): .*--shm-size"
    ):
        preflight.check_room(repository, tmp_path)
    sizes.total = int(needed.replace(",", ""))
    preflight.check_room(repository, tmp_path)
    # A tmpfs without a limit, as Podman's --shm-size=0 mounts it.
    sizes.total = sizes.free = 0
    preflight.check_room(repository, tmp_path)
    (found,) = (finding for finding in examine() if finding.name == "shared memory")
    assert (found.ok, found.found) == (True, "no limit in /dev/shm")


def test_shared_memory_that_is_missing_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    config = tmp_path / "models" / "a" / "config.pbtxt"
    monkeypatch.setattr(preflight, "_SEGMENTS", tmp_path / "shm")
    config.write_text('platform: "ensemble"')
    preflight.check_room(tmp_path / "models", tmp_path)
    config.write_text('backend: "python"')
    with pytest.raises(UnavailableError, match=rf"^{tmp_path}/shm is missing, read-only or .*: mount a tmpfs "):
        preflight.check_room(tmp_path / "models", tmp_path)


def test_a_folder_that_may_not_be_searched_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert preflight.find_libpython() is None
