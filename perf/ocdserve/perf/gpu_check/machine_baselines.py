# SPDX-License-Identifier: Apache-2.0
"""Others' ways on the same GPU, by what the machine itself has installed: PyTorch and CuPy, in a Python of its own."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.perf.gpu_check.cases import Case
from ocdserve.perf.gpu_check.check_context import Setting

SCRIPT = Path(__file__).with_name("rivals.py")
_WHAT = "PyTorch and CuPy"


def time_machine_libraries(setting: Setting, image: NDArray[np.uint8], cases: Mapping[str, Sequence[Case]]) -> None:
    """Run `rivals.py` in the machine's Python and take over what it found."""
    python = setting.files.baseline_python
    if python is None:
        setting.record.absent(_WHAT, "no other Python was named (--baseline-python)")
        return
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.json"
        masks = {kind: maps[0].probability > 76 for kind, maps in cases.items()}
        np.savez(inputs, image=image, size=np.array(setting.effort.size), **masks)
        command = [python, "-I", str(SCRIPT), str(inputs), str(outputs), str(setting.effort.repeats)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=max(5.0, setting.deadline.left_s / 2), check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            setting.record.absent(_WHAT, error)
        else:
            if ended.returncode:
                setting.record.absent(_WHAT, f"exit code {ended.returncode}: {_last_line(ended.stderr)}")
        if not outputs.is_file():
            return
        found: dict[str, Any] = json.loads(outputs.read_text("utf-8"))
    for name, version in found["versions"].items():
        setting.record.count(name, "version of the machine's own", 1, "", note=version)
    for item in found["times"]:
        setting.record.time(item["subject"], item["case"], item["us"], item["note"])
    for item in found["figures"]:
        setting.record.count(item["subject"], item["case"], item["value"], item["unit"])
    for item in found["absent"]:
        setting.record.absent(item["what"], item["reason"])


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
