# SPDX-License-Identifier: Apache-2.0
"""What is said about the installed PyTorch, with distributions that a test writes."""

from pathlib import Path

import pytest

from ocdserve.backend.device import probe, pytorch
from ocdserve.backend.doctor import Finding, examine
from ocdserve.builder.train.prerequisites import check_prerequisites
from ocdserve.contract import UnavailableError

CPU_LINE = "`uv pip install --torch-backend cpu 'ocdserve[train]'`"


def distribution(
    folder: Path, name: str, requires: tuple[str, ...] = (), sizes: tuple[tuple[str, int], ...] = ()
) -> None:
    info = folder / f"{name.replace('-', '_')}-2.13.0.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.13.0\n{needs}")
    (info / "RECORD").write_text("".join(f"{file},,{size}\n" for file, size in sizes))


@pytest.fixture
def cuda_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch for CUDA 13.0 with 0.5 GB of CUDA libraries of its own and 1.5 GB in two other distributions."""
    requires = ("numpy", "cuda-toolkit[cublas]==13.0.2; platform_system == 'Linux'", "triton==3.7.0")
    libraries = (("torch/lib/libtorch_cuda.so", 5 * 10**8), ("torch/lib/libtorch_cpu.so", 4 * 10**8))
    distribution(tmp_path, "torch", requires, libraries)
    distribution(
        tmp_path, "cuda-toolkit", ("nvidia-cublas==13.1.* ; extra == 'cublas'", "nvidia-cufft; extra == 'all'")
    )
    distribution(tmp_path, "nvidia-cublas", (), (("nvidia/libcublas.so", 14 * 10**8),))
    distribution(tmp_path, "triton", (), (("triton/libtriton.so", 10**8),))
    (tmp_path / "torch").mkdir()
    text = "cuda: Optional[str] = '13.0'\ngit_version = '0'\nhip: Optional[str] = None\n"
    (tmp_path / "torch" / "version.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(pytorch, "missing_modules", list)


def training() -> Finding:
    return next(one for one in examine() if one.name == "training")


@pytest.mark.usefixtures("cuda_build")
def test_cuda_libraries_without_a_gpu_are_counted_and_warnings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gpu_count", lambda: 0)
    found = training()
    assert (found.ok, found.found) == (False, "PyTorch 2.13.0, built for CUDA 13.0")
    assert "on a machine without a GPU: 2.0 GB that nothing uses" in found.remedy
    assert CPU_LINE in found.remedy
    warnings: list[str] = []
    check_prerequisites(warnings.append)
    check_prerequisites(warnings.append)
    assert warnings == [found.remedy]


@pytest.mark.usefixtures("cuda_build")
def test_a_cuda_build_next_to_a_gpu_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gpu_count", lambda: 1)
    assert (training().ok, training().remedy) == (True, "")


@pytest.mark.usefixtures("cuda_build")
def test_a_cpu_build_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert (training().ok, training().found, training().remedy) == (True, "PyTorch 2.13.0, a CPU build", "")


def test_a_missing_extra_is_named_with_the_commands_that_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "missing_modules", lambda: ["torch", "optuna"])
    with pytest.raises(UnavailableError) as caught:
        check_prerequisites(print)
    for text in (str(caught.value), training().remedy):
        assert "`pip install 'ocdserve[train]'`" in text
        assert CPU_LINE in text
        assert "\n" not in text
    assert "(torch, optuna)" in str(caught.value)
