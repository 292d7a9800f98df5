# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import pytest

from ocdserve.backend.network.options import (
    BUILD_RUNTIMES,
    CPU_RUNTIMES,
    ENGINE_RUNTIMES,
    GPU_RUNTIMES,
    RUNTIMES,
    EngineRuntime,
    RuntimeOptions,
)
from ocdserve.contract import InvalidInputError


def test_the_runtimes_are_those_of_the_design() -> None:
    assert CPU_RUNTIMES == ("openvino", "onnxruntime")
    assert GPU_RUNTIMES == ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
    assert BUILD_RUNTIMES == ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
    assert list(RUNTIMES) == [*CPU_RUNTIMES, *GPU_RUNTIMES]


def test_type_checkers_know_the_same_engines() -> None:
    assert get_args(EngineRuntime) == ENGINE_RUNTIMES


def test_an_unknown_runtime_is_refused_and_the_known_ones_are_listed() -> None:
    message = "runtime must be one of openvino, onnxruntime, tensorrt, tensorrt-rtx, onnxruntime-cuda; got 'npu'"
    with pytest.raises(InvalidInputError, match=message):
        RuntimeOptions("npu")
