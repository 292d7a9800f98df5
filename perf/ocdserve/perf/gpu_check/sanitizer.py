# SPDX-License-Identifier: Apache-2.0
"""A short run of the exactness part under compute-sanitizer, which finds what right answers may hide."""

import re
import shutil
from collections.abc import Sequence

from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.running import Part, run_apart

_TOOLS = ("memcheck", "racecheck", "initcheck")
_PROGRAM = "compute-sanitizer"
_USUAL_PLACE = "/usr/local/cuda/bin"
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
_TOLD = 10


def check_sanitizer(setting: Setting, part: Part, arguments: Sequence[str]) -> None:
    """The whole part.

    Args:
        setting: See there.
        part: What to run under the tool.
        arguments: Of its command line.

    Raises:
        UnavailableError: compute-sanitizer is not on this machine.
    """
    program = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path=_USUAL_PLACE)
    if program is None:
        raise UnavailableError(f"{_PROGRAM} is neither on the PATH nor in {_USUAL_PLACE}; it comes with CUDA's toolkit")
    for index, tool in enumerate(_TOOLS):
        setting.go_on(f"{tool} and what comes after it")
        seconds = setting.deadline.left_s / (len(_TOOLS) - index)
        log = setting.files.work / f"{tool}.txt"
        prefix = [program, "--tool", tool, "--log-file", str(log)]
        record = run_apart(part, seconds, setting.files.work / f"{tool}.json", arguments, prefix)
        text = log.read_text("utf-8", "replace") if log.is_file() else ""
        setting.record.count("cases under the tool", tool, record.value("cases compared", "generated maps") or 0, "")
        _note_summary(setting, tool, text, record.reason)


def _note_summary(setting: Setting, tool: str, log: str, reason: str) -> None:
    summary = _SUMMARY.search(log)
    if summary is None:
        setting.record.absent(tool, f"it wrote no summary; {reason or log[-500:] or 'it said nothing'}")
        return
    found = int(summary[1] or summary[2])
    setting.record.count("errors found", tool, found, "", reason)
    lines = [line.lstrip("= ") for line in log.splitlines() if line.startswith("=========")]
    if found:
        setting.record.deviations += [f"{tool}: {line}" for line in lines if line][:_TOLD]
