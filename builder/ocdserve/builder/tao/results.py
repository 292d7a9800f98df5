# SPDX-License-Identifier: Apache-2.0
"""Where an action writes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from ocdserve.builder.tao.spec import MANDATORY, Spec, SpecError, plain

# TAO's names of the folders below `results_dir`.
FOLDERS = {"gen_trt_engine": "gen_trt_engine", "evaluate": "trt_evaluate", "inference": "trt_inference"}


def results_dir(spec: Spec, action: str) -> Path:
    """Folder of an action's results: `<action>.results_dir`, else a folder of the action in `results_dir`.

    Raises:
        SpecError: Neither is given.
    """
    folder = results_dir_of(plain(spec), action)
    if folder is None:
        own = f"{action}.results_dir or " if action in FOLDERS else ""
        raise SpecError(f"no folder for the results: set {own}results_dir, for example results_dir=results")
    return folder


def results_dir_of(values: Mapping[str, Any], action: str) -> Path | None:
    """The same from a mapping that need not be a valid spec; None where it does not say."""
    section = values.get(action)
    own = section.get("results_dir") if isinstance(section, Mapping) else None
    if _is_given(own):
        return Path(own)
    parent = values.get("results_dir")
    return Path(parent) / FOLDERS.get(action, "") if _is_given(parent) else None


def with_results_dir(spec: Spec, folder: Path) -> Spec:
    """The spec with `results_dir` as it was resolved, as TAO writes it back."""
    return replace(spec, results_dir=str(folder))


def _is_given(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value not in ("", MANDATORY)
