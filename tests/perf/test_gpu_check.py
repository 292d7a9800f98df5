# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check import Check, main, run_checks, to_markdown


def fails(data: Path) -> str:
    raise InvalidInputError("the engine\nloses accuracy")


def breaks(data: Path) -> str:
    return str(1 / 0)


def test_a_failing_check_does_not_stop_the_others() -> None:
    checks = (Check("first", fails), Check("second", breaks), Check("third", lambda data: f"read {data}"))
    results = run_checks(Path("pictures"), checks)
    assert [(result.name, result.passed) for result in results] == [
        ("first", False),
        ("second", False),
        ("third", True),
    ]
    assert results[1].figures.startswith("ZeroDivisionError: division by zero (test_gpu_check.py:")
    report = to_markdown(results, "a GPU")
    assert "| first | FAILED | 0 | the engine loses accuracy |" in report
    assert "| third | passed | 0 | read pictures |" in report


def test_a_machine_without_a_gpu_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from ocdserve.builder.engine_runtime import present_gpu

    try:
        present_gpu()
    except UnavailableError:
        assert main(["--data", str(tmp_path)]) == 2
        assert "no NVIDIA driver" in capsys.readouterr().err
    else:
        pytest.skip("this machine has a GPU")
