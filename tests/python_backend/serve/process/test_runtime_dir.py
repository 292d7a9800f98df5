# SPDX-License-Identifier: Apache-2.0
import os
import sys
from pathlib import Path

import pytest

from ocdserve.backend.serve import ServeOptions
from ocdserve.backend.serve.process import runtime_dir
from ocdserve.backend.serve.process.runtime_dir import container_command, link_pytriton, prepare_runtime
from ocdserve.contract import UnavailableError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "config.pbtxt").write_text('name: "model"')
    return tmp_path / "models"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    return path


def test_pytriton_is_laid_out_by_links_with_the_stub_of_this_python(tmp_path: Path) -> None:
    source = tmp_path / "pytriton"
    target = link_pytriton(source, tmp_path / "rt")

    links = {str(p.relative_to(target)): Path(os.readlink(p)) for p in target.rglob("*") if p.is_symlink()}
    links = {name: link for name, link in links.items() if not name.startswith("lib/")}
    assert links == {
        "tritonserver": source / "bin/tritonserver",
        "caches": source / "caches",
        "backends/python/libtriton_python.so": source / "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py": source / "backends/python/triton_python_backend_utils.py",
        "backends/python/triton_python_backend_stub": source
        / f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
    }


def test_another_installation_uses_its_own_backends_and_an_empty_directory(
    tmp_path: Path, repository: Path, workspace: Path
) -> None:
    binary = executable(tmp_path / "other" / "bin" / "tritonserver")
    (tmp_path / "other" / "backends" / "python").mkdir(parents=True)

    runtime = prepare_runtime(ServeOptions(repository, tritonserver=binary), workspace, {"PATH": "/bin", "LANG": "C"})

    assert (runtime.binary, runtime.backends, runtime.caches) == (binary, tmp_path / "other" / "backends", None)
    assert list(runtime.directory.iterdir()) == []
    # Its embedded Python is its own, so the search paths of this one must not lead it astray.
    assert (runtime.environment["PATH"], runtime.environment.get("LD_LIBRARY_PATH")) == ("/bin", None)
    assert runtime.environment["MALLOC_MMAP_THRESHOLD_"] == "8388608"


@pytest.mark.parametrize("exists", [True, False], ids=["no backends", "no binary"])
def test_an_installation_that_is_none_is_answered_with_the_container_command(
    tmp_path: Path, repository: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr(runtime_dir, "STANDARD_BACKENDS", tmp_path / "nowhere")
    binary = tmp_path / "other" / "bin" / "tritonserver"
    if exists:
        executable(binary)
    with pytest.raises(UnavailableError, match=r"docker run .*--shm-size=1g .*tritonserver:24\.10-py3"):
        prepare_runtime(ServeOptions(repository, tritonserver=binary), workspace, {})


def test_the_container_command_maps_ports_and_repository(repository: Path) -> None:
    command = container_command(ServeOptions(repository, http_port=9000, grpc_port=0, metrics_port=9002))
    assert "-p 127.0.0.1:9000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:9002:8002" in command
    assert f"-v {repository}:/models " in command


def test_the_container_command_can_be_pasted(repository: Path) -> None:
    spaced = repository.rename(repository.with_name("my models"))
    assert f" -v '{spaced}:/models' " in container_command(ServeOptions(spaced))


def test_the_container_command_is_that_of_the_repository_and_the_image(repository: Path) -> None:
    options = ServeOptions(repository)
    assert container_command(options).endswith(
        f"-v {repository}:/models nvcr.io/nvidia/tritonserver:24.10-py3 sh -c \"pip install 'ocdserve[models]' && "
        'tritonserver --model-repository=/models --disable-auto-complete-config"'
    )
    config = next(repository.glob("*/config.pbtxt"))
    config.write_text(config.read_text() + "instance_group [ { kind: KIND_GPU } ]")
    command = container_command(options, "mine:1")
    assert command.startswith("docker run --rm --gpus all --shm-size=1g ")
    assert " mine:1 sh -c \"pip install 'ocdserve[gpu]' && " in command
    assert "--cuda-memory-pool-byte-size=0:1073741824" in command
    # Nothing is installed where the repository brings it.
    config.write_text(config.read_text() + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "x" } }')
    assert " mine:1 tritonserver --model-repository=/models " in container_command(options, "mine:1")
