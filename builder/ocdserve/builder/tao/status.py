# SPDX-License-Identifier: Apache-2.0
"""TAO's `status.json`: one JSON object per line, appended across runs, for programs that watch a run."""

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

Status = Literal["STARTED", "RUNNING", "SUCCESS", "FAILURE", "SKIPPED"]
Verbosity = Literal["INFO", "WARNING", "ERROR", "CRITICAL"]

STATUS_FILE = "status.json"


class StatusLog:
    """Append status lines; each is complete in the file before `write` returns.

    Args:
        folder: The action's result folder; created if needed.
        repeats_kpi: Whether lines without figures repeat the last ones, as those of TAO's training image do.
        is_written: Whether lines are written at all; the first process of several writes them.
    """

    def __init__(self, folder: Path, repeats_kpi: bool = False, is_written: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.is_written = is_written
        self.path = folder / STATUS_FILE
        self._repeats_kpi = repeats_kpi
        self._kpi: Mapping[str, float | int | str | None] | None = None

    def write(
        self,
        status: Status,
        message: str,
        *,
        verbosity: Verbosity = "INFO",
        kpi: Mapping[str, float | int | str | None] | None = None,
        data: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        """Append a line.

        Args:
            status: STARTED first, RUNNING between, SUCCESS or FAILURE last (`run_action` writes first and last).
            message: What happened.
            verbosity: Severity.
            kpi: Figures by name, numbers as numbers; NaN and infinities are written as null.
            data: Fields before the others, as TAO writes those of an epoch.
            extra: Fields after the others, for example `epoch=3`.
        """
        if not self.is_written:
            return
        if self._repeats_kpi:
            kpi = self._kpi = kpi or self._kpi
        now = datetime.now()
        record: dict[str, Any] = {
            **(data or {}),
            # Not zero-padded, as TAO writes them: watchers split them at the separators.
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": status,
            "verbosity": verbosity,
        }
        optional = {"message": message, "kpi": kpi, **extra}
        record.update({name: value for name, value in optional.items() if value not in (None, "", {})})
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, default=_as_number)
        # A single call of `write`, so that lines of two processes do not interleave.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (line + "\n").encode())
        finally:
            os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _as_number(value: Any) -> Any:
    """Convert NumPy scalars to numbers, anything else to text."""
    return _finite(value.item()) if hasattr(value, "item") else str(value)
