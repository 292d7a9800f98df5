# SPDX-License-Identifier: Apache-2.0
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError

OURS = "lib/python3.10/site-packages/ocdserve/backend/triton/__init__.py"
MODELS_IN_PYTHON = ["ocdnet_fused", "ocdnet_network", "ocdnet_postprocess", "ocdnet_preprocess"]
Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """A function that writes an environment with these files, of a thousand bytes each, and bin/python3."""

    def write(*names: str, python: str = "/usr/bin/python3", prefix: str = "", file: str = "environment") -> Path:
        path = tmp_path / f"{file}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            link = tarfile.TarInfo(f"{prefix}bin/python3")
            link.type, link.linkname = tarfile.SYMTYPE, python
            archive.addfile(link)
            for name in names:
                member = tarfile.TarInfo(f"{prefix}{name}")
                member.size = 1000
                archive.addfile(member, io.BytesIO(bytes(1000)))
        return path

    return write


def parameters(repository: Path, model: str) -> dict[str, str]:
    config: Any = text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_environment_says_for_which_python_it_is_and_what_it_takes_unpacked(pack: Pack, prefix: str) -> None:
    path = pack("bin/activate", OURS, prefix=prefix)
    assert PackedEnvironment.read(path) == PackedEnvironment(path, "3.10", "/usr/bin/python3", 2000)
    # One of conda brings its Python.
    assert PackedEnvironment.read(pack("bin/activate", OURS, python="python3.10")).interpreter == ""


def test_what_triton_or_the_models_could_not_use_is_refused(pack: Pack, tmp_path: Path) -> None:
    for path, message in (
        (pack(OURS), r"environment\.tar\.gz holds no bin/activate, which Triton runs; scripts/"),
        (
            pack("bin/activate", file="other"),
            r"other\.tar\.gz holds no lib/python3\.\*/site-packages/ocdserve",
        ),
        (tmp_path / "absent.tar.gz", r"cannot read the environment '.*absent\.tar\.gz': No such file"),
        (tmp_path, r"cannot read the environment .*: Is a directory"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            PackedEnvironment.read(path)
    whole = pack("bin/activate", OURS).read_bytes()
    for data in (b"PK\3\4", b"", whole[:-20], whole[:60] + bytes(20) + whole[80:]):
        (tmp_path / "wrong.tar.gz").write_bytes(data)
        with pytest.raises(
            InvalidInputError, match=r"wrong\.tar\.gz is not a \.tar\.gz file|cannot read the environment"
        ):
            PackedEnvironment.read(tmp_path / "wrong.tar.gz")


def test_all_models_in_python_name_the_one_copy(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    path = pack("bin/activate", OURS)
    repository = publish(PublishOptions(tmp_path / "models", bundle, environment=PackedEnvironment.read(path)))
    assert [str(one.relative_to(repository)) for one in repository.rglob("*.tar.gz")] == [
        "ocdnet_network/environment.tar.gz"
    ]
    assert (repository / "ocdnet_network" / "environment.tar.gz").read_bytes() == path.read_bytes()
    named = {one.name: parameters(repository, one.name).get("EXECUTION_ENV_PATH") for one in repository.iterdir()}
    value = "$$TRITON_MODEL_DIRECTORY/../ocdnet_network/environment.tar.gz"
    assert named == {**dict.fromkeys(MODELS_IN_PYTHON, value), "ocdnet": None, "ocdnet_raw": None}


def test_a_publication_without_an_environment_replaces_one_with_it(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    environment = PackedEnvironment.read(pack("bin/activate", OURS))
    publish(PublishOptions(tmp_path / "models", bundle, environment=environment))
    repository = publish(PublishOptions(tmp_path / "models", bundle))
    assert not list(repository.rglob("*.tar.gz"))
    assert all("EXECUTION_ENV_PATH" not in parameters(repository, name) for name in MODELS_IN_PYTHON)


def test_the_copy_of_an_earlier_publication_can_be_published_again(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    path = pack("bin/activate", OURS)
    publish(PublishOptions(tmp_path / "models", bundle, environment=PackedEnvironment.read(path)))
    inside = tmp_path / "models" / "ocdnet_network" / "environment.tar.gz"
    publish(PublishOptions(tmp_path / "models", bundle, environment=PackedEnvironment.read(inside)))
    assert inside.read_bytes() == path.read_bytes()


def test_publish_says_what_the_other_triton_needs(
    pack: Pack, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["publish", "--repository", str(tmp_path / "models"), "--bundle", str(bundle)]
    assert main([*command, "--image", "triton:1"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "docker run" in line)
    assert f"-v {tmp_path / 'models'}:/models triton:1 sh -c \"pip install 'ocdserve[models]' && tritonserver " in line
    assert "--disable-auto-complete-config" in line

    assert main([*command, "--environment", str(pack("bin/activate", OURS))]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "docker run" in line)
    assert line.endswith(":/models nvcr.io/nvidia/tritonserver:24.10-py3 tritonserver --model-repository=/models "
                         "--disable-auto-complete-config")  # fmt: skip
    assert "needs Python 3.10 at /usr/bin/python3" in out
    assert "rm -rf /tmp/python_env_*; exec tritonserver" in out


def test_an_environment_that_is_none_is_an_error_of_usage(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["publish", "--repository", str(tmp_path / "models"), "--bundle", str(bundle)]
    assert main([*command, "--environment", str(tmp_path / "absent.tar.gz")]) == 2
    assert "cannot read the environment" in capsys.readouterr().err
    assert main([*command, "--tritonserver", "/usr/bin/true"]) == 2
    assert "add --verify" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
