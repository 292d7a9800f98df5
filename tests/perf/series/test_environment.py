# SPDX-License-Identifier: Apache-2.0
"""The environment of a measurement: what is read from the system, and which differences are reported."""

from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.perf.series.environment import Environment, Gpu, gpu_state

ENVIRONMENT = Environment(
    "Some CPU", 2, 23.5, "Linux", "3.11.7", {"ocdserve": "0.1.0", "numpy": "1.26.4"}, (0.5, 1.0, 2.0), flags=("avx2",)
)


def test_this_machine_describes_itself() -> None:
    environment = Environment.current()
    assert environment.cpu
    assert environment.cores >= 1
    assert environment.versions["numpy"]
    assert environment.load_average_after is None
    assert environment.ended().load_average_after is not None
    assert list(environment.differences(environment.ended())) == []


def test_differences_name_both_sides() -> None:
    other = replace(
        ENVIRONMENT,
        cpu="Other CPU",
        flags=("avx2", "avx512f"),
        governor="powersave",
        versions={"numpy": "2.0.0", "openvino": "2026.4.1", "ocdserve": "0.2.0"},
    )
    assert list(ENVIRONMENT.differences(other)) == [
        "cpu: Some CPU and Other CPU",
        "flags: none more and avx512f",
        "governor: none and powersave",
        "numpy: 1.26.4 and 2.0.0",
        "openvino: none and 2026.4.1",
    ]


def test_load_average_commit_and_our_own_version_are_not_compared() -> None:
    other = replace(
        ENVIRONMENT,
        versions={"ocdserve": "0.2.0", "numpy": "1.26.4"},
        load_average=(9.0, 9.0, 9.0),
        load_average_after=(1.0, 1.0, 1.0),
        commit="abc",
    )
    assert list(ENVIRONMENT.differences(other)) == []


def test_without_nvidia_smi_the_state_of_the_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert gpu_state() == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.1, 81559 MiB, 1980 MHz'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state() == {"driver_version": "580.1", "memory.total": "81559 MiB", "clocks.sm": "1980 MHz"}


def test_another_gpu_and_its_packages_are_differences() -> None:
    gpu = Gpu("NVIDIA L4", "sm_89", "580.1, CUDA 13.0", {"pycuda": "2026.1"}, {"clocks.sm": "2040 MHz"})
    one = replace(ENVIRONMENT, gpu=gpu)
    assert list(one.differences(replace(one, gpu=replace(gpu, state={"clocks.sm": "300 MHz"})))) == []
    other = replace(gpu, model="NVIDIA H100", versions={"pycuda": "2026.2"})
    assert list(one.differences(replace(one, gpu=other))) == [
        "gpu: NVIDIA L4, driver 580.1, CUDA 13.0 and NVIDIA H100, driver 580.1, CUDA 13.0",
        "pycuda: 2026.1 and 2026.2",
    ]
    assert next(ENVIRONMENT.differences(one)) == "gpu: none and NVIDIA L4, driver 580.1, CUDA 13.0"
