# SPDX-License-Identifier: Apache-2.0
"""Engines that were built before, found again by everything that decides whether they fit.

An entry is a folder named after the hash of its key, with the plan and a JSON description. It appears as a whole or
not at all; one that is damaged, or describes another key, is never used.
"""

import fcntl
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from ocdserve.backend.files import cache_folder, draft_folder, install_folder
from ocdserve.builder.engine.build import Engine, serialised
from ocdserve.builder.engine.options import EngineConfig, EngineRuntime, HardwareCompatibility, ShapeProfile
from ocdserve.builder.engine.targets import runtime_version, targets

ROOT_VARIABLE = "OCDSERVE_ENGINE_STORE"

# 1: first version. 2: engines whose contexts take memory by their shape, and can be recorded in CUDA graphs.
_SCHEMA_VERSION = 2
_PLAN = "engine.plan"
_DESCRIPTION = "engine.json"
_LOCK = ".lock"
_DRAFT = ".draft-"

# What a build that was killed leaves is removed after this time; a live one needs its draft for seconds.
_DRAFT_LIFE_S = 24 * 3600


@dataclass(frozen=True)
class EngineKey:
    """What decides whether an engine can stand for another; all of it must be equal.

    Attributes:
        onnx_sha256: Hash of the typed network.
        runtime: `tensorrt` or `tensorrt-rtx`.
        runtime_version: Its full version.
        targets: What GPUs the engine runs on.
        precision: The build's name for the types in the network, for example `int8`.
        calibration_sha256: Hash of the calibration that the network's scales come from; None without one.
        profile: Input shapes that were asked for.
        optimization_level: As in `EngineConfig`, like the fields below.
    """

    onnx_sha256: str
    runtime: str
    runtime_version: str
    targets: tuple[str, ...]
    precision: str
    calibration_sha256: str | None
    profile: ShapeProfile
    optimization_level: int
    workspace_bytes: int | None
    hardware_compatibility: HardwareCompatibility
    version_compatible: bool

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto | bytes,
        runtime: EngineRuntime,
        profile: ShapeProfile,
        config: EngineConfig,
        precision: str,
        calibration_sha256: str | None = None,
    ) -> "EngineKey":
        """The key of the engine that `build_engine(model, runtime, profile, config)` makes on this machine.

        Raises:
            InvalidInputError: The runtime does not build for the architectures.
            UnavailableError: The runtime is not installed, or the GPU that it needs is not there.
        """
        return cls(
            onnx_sha256=hashlib.sha256(serialised(model)).hexdigest(),
            runtime=runtime,
            runtime_version=runtime_version(runtime),
            targets=targets(runtime, config),
            precision=precision,
            calibration_sha256=calibration_sha256,
            profile=profile,
            optimization_level=config.optimization_level,
            workspace_bytes=config.workspace_bytes,
            hardware_compatibility=config.hardware_compatibility,
            version_compatible=config.version_compatible,
        )

    def to_json(self) -> str:
        """The key as text: equal keys give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)


class EngineStore:
    """Engines in a folder that several builders may share.

    Args:
        root: The folder; None takes `OCDSERVE_ENGINE_STORE`, else `ocdserve/engines` in the user's cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder("engines", ROOT_VARIABLE)

    def folder(self, key: EngineKey) -> Path:
        """Where the key's engine is, or would be."""
        return self.root / hashlib.sha256(key.to_json().encode()).hexdigest()

    def get(self, key: EngineKey) -> Engine | None:
        """The key's engine; None where there is none, or none that is whole and made for this key."""
        folder = self.folder(key)
        try:
            description = json.loads((folder / _DESCRIPTION).read_text("utf-8"))
            plan = (folder / _PLAN).read_bytes()
            profile = ShapeProfile(*(tuple(description["profile"][name]) for name in ("min", "opt", "max")))
            engine = Engine(plan, profile, tuple(description["warnings"]), float(description["build_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return engine if description == _description(key, engine) else None

    def put(self, key: EngineKey, engine: Engine) -> None:
        """Keep an engine, in place of a damaged one; where another builder was faster, its engine stays."""
        self._remove_old_drafts()
        with draft_folder(self.root, _DRAFT) as draft:
            (draft / _PLAN).write_bytes(engine.plan)
            (draft / _DESCRIPTION).write_text(json.dumps(_description(key, engine), indent=2) + "\n", "utf-8")
            self._install(draft, key)

    def _install(self, draft: Path, key: EngineKey) -> None:
        folder = self.folder(key)
        # The lock keeps two builders from replacing one damaged entry; a process that dies gives it back.
        with open(self.root / _LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.get(key) is None:
                shutil.rmtree(folder, ignore_errors=True)
                install_folder(draft, folder)

    def _remove_old_drafts(self) -> None:
        for path in self.root.glob(f"{_DRAFT}*"):
            try:
                if time.time() - path.stat().st_mtime > _DRAFT_LIFE_S:
                    shutil.rmtree(path)
            except OSError:  # another builder was faster
                continue


def _description(key: EngineKey, engine: Engine) -> dict[str, object]:
    values = {
        "schema_version": _SCHEMA_VERSION,
        "key": asdict(key),
        "plan_sha256": hashlib.sha256(engine.plan).hexdigest(),
        "plan_bytes": len(engine.plan),
        "profile": asdict(engine.profile),
        "warnings": engine.warnings,
        "build_s": round(engine.build_s, 3),
    }
    described: dict[str, object] = json.loads(json.dumps(values))
    return described
