# SPDX-License-Identifier: Apache-2.0
"""The short form of the campaign `fuzz`: the same cases, fewer of them."""

import logging
import warnings
from pathlib import Path

import pytest

from tests.campaigns.fuzz_cases import KINDS, case, run_case

# By kind how many: 500 images and 4,500 of what is parsed.
CASES = {
    "images": 500,
    "detector": 500,
    "manifest": 350,
    "cache": 1500,
    "tuning": 350,
    "spec": 30,
    "onnx": 250,
    "parameters": 1520,
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_read_or_refused_with_a_reason(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes, faults = set(), []
    with warnings.catch_warnings(), caplog.at_level(logging.ERROR, "ocdserve"):
        warnings.simplefilter("ignore")
        for number in range(CASES[kind]):
            try:
                outcomes.add(run_case(kind, number, tmp_path))
            except Exception as error:
                faults.append(f"python -m tests.campaigns fuzz --case {kind}:{number}: {type(error).__name__}: {error}")
    assert faults == []
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_the_same_each_time(kind: str) -> None:
    assert case(kind, 7) == case(kind, 7)
    assert len({case(kind, number) for number in range(20)}) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_are_valid(kind: str, tmp_path: Path) -> None:
    for seed in KINDS[kind].seeds():
        KINDS[kind].read(seed, 2, tmp_path)
