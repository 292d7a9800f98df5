# SPDX-License-Identifier: Apache-2.0
"""Quotas from the files of control groups, as a container and a host have them."""

import os
from pathlib import Path

import pytest

from ocdserve.backend import cores
from ocdserve.backend.cores import core_count, cpu_quota
from ocdserve.backend.network.options import RuntimeOptions

OF_VERSION_2 = "0::/\n"
OF_VERSION_1 = "12:cpuset:/docker/1f\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"
HYBRID = f"{OF_VERSION_1}0::/system.slice\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        pytest.param(OF_VERSION_2, {"cpu.max": "100000 100000"}, 1.0, id="version 2"),
        pytest.param(OF_VERSION_2, {"cpu.max": "150000 100000\n"}, 1.5, id="one and a half"),
        pytest.param(OF_VERSION_2, {"cpu.max": "max 100000"}, None, id="no limit"),
        pytest.param(OF_VERSION_2, {}, None, id="the root of a host"),
        pytest.param(
            "0::/kubepods/pod7/1f\n",
            {
                "kubepods/cpu.max": "max 100000",
                "kubepods/pod7/cpu.max": "200000 100000",
                "kubepods/pod7/1f/cpu.max": "400000 100000",
            },
            2.0,
            id="a group above is narrower",
        ),
        pytest.param(
            OF_VERSION_1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            0.5,
            id="version 1, in a container",
        ),
        pytest.param(
            OF_VERSION_1,
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/docker/1f/cpu.cfs_quota_us": "300000",
                "cpu/docker/1f/cpu.cfs_period_us": "100000",
            },
            3.0,
            id="version 1, on a host",
        ),
        pytest.param(
            HYBRID,
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
            id="hybrid without a limit",
        ),
        pytest.param(OF_VERSION_2, {"cpu.max": "nonsense"}, None, id="nonsense"),
        pytest.param(OF_VERSION_2, {"cpu.max": "100000 0"}, None, id="no period"),
        pytest.param(None, {"cpu.max": "100000 100000"}, None, id="no control groups"),
    ],
)
def test_the_quota_is_the_narrowest_of_the_groups(
    groups: str | None, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    assert cpu_quota(tmp_path / "groups", tmp_path / "mount") == quota


@pytest.mark.parametrize(("quota", "count"), [(None, 4), (64.0, 4), (2.0, 2), (1.2, 2), (0.25, 1)])
def test_threads_are_no_more_than_the_quota_and_at_least_one(
    quota: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert core_count() == RuntimeOptions().thread_count == count
