# SPDX-License-Identifier: Apache-2.0
"""Store of built engines, keyed by everything that an engine depends on.

An entry is a folder named after the hash of its key, with the plan and a JSON description. Entries are written
atomically; one that is damaged, or describes another key, is never used.
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

# 1: first version. 2: contexts take the memory for their shape, and can be captured in CUDA graphs.
_SCHEMA_VERSION = 2
_PLAN = "engine.plan"
_DESCRIPTION = "engine.json"
_LOCK = ".lock"
_DRAFT = ".draft-"

# Drafts of killed builds are removed after this time; a running build needs its draft for seconds.
_DRAFT_LIFE_S = 24 * 3600


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on; engines of equal keys are interchangeable.

    Attributes:
        onnx_sha256: Hash of the typed network.
        runtime: `tensorrt` or `tensorrt-rtx`.
        runtime_version: Its full version.
        targets: GPUs that the engine runs on.
        precision: The build's name for the types in the network, for example `int8`.
        calibration_sha256: Hash of the calibration of the network's scales, if any.
        profile: Requested input shapes.
        optimization_level: As in `EngineConfig`, like the fields below.
        profiles: Number of optimization profiles: 2 with one for single images.
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
    profiles: int = 1

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
        """The key of the engine that `build_engine(model, runtime, profile, config)` builds on this machine.

        Raises:
            InvalidInputError: The runtime does not build for the architectures.
            UnavailableError: The runtime is not installed, or this machine lacks the GPU that it needs.
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
            profiles=len(config.profiles(profile)),
        )

    def to_json(self) -> str:
        """The key as text, equal for equal keys."""
        return json.dumps(asdict(self), sort_keys=True)


class EngineStore:
    """Engines in a folder that may be shared by several builders.

    Args:
        root: The folder; None takes `OCDSERVE_ENGINE_STORE`, else `ocdserve/engines` in the user's cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder("engines", ROOT_VARIABLE)

    def folder(self, key: EngineKey) -> Path:
        """Folder of the key's engine, whether it exists or not."""
        return self.root / hashlib.sha256(key.to_json().encode()).hexdigest()

    def get(self, key: EngineKey) -> Engine | None:
        """The key's engine; None if it is missing, damaged, or made for another key."""
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
        """Store an engine; replaces a damaged one, keeps an intact one that another builder has stored."""
        self._remove_old_drafts()
        with draft_folder(self.root, _DRAFT) as draft:
            (draft / _PLAN).write_bytes(engine.plan)
            (draft / _DESCRIPTION).write_text(json.dumps(_description(key, engine), indent=2) + "\n", "utf-8")
            self._install(draft, key)

    def _install(self, draft: Path, key: EngineKey) -> None:
        folder = self.folder(key)
        # Keeps two builders from replacing one damaged entry; the lock of a process that dies is released.
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
            except OSError:  # another builder has removed it
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
