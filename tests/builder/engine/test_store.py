# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ocdserve.builder.engine import store as store_module
from ocdserve.builder.engine import targets as targets_module
from ocdserve.builder.engine.build import Engine
from ocdserve.builder.engine.options import EngineConfig, ShapeProfile
from ocdserve.builder.engine.store import EngineKey, EngineStore

PROFILE = ShapeProfile((1, 32, 32), (1, 64, 96), (2, 128, 128))
KEY = EngineKey(
    "ab" * 32, "tensorrt", "10.13.0", ("sm_89", "NVIDIA L4"), "int8", "cd" * 32, PROFILE, 3, None, "none", False
)
ENGINE = Engine(b"plan" * 1000, PROFILE, ("a warning",), 1.2345)

OTHER: dict[str, Any] = {
    "onnx_sha256": "ef" * 32,
    "runtime": "tensorrt-rtx",
    "runtime_version": "10.13.1",
    "targets": ("sm_89", "NVIDIA GeForce RTX 4090"),
    "precision": "fp16",
    "calibration_sha256": None,
    "profile": ShapeProfile((1, 32, 32), (2, 64, 96), (2, 128, 128)),
    "optimization_level": 4,
    "workspace_bytes": 1 << 30,
    "hardware_compatibility": "same_compute_capability",
    "version_compatible": True,
    "profiles": 2,
}


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def same(found: Engine | None, wanted: Engine = ENGINE) -> bool:
    return found is not None and replace(found, build_s=0) == replace(wanted, build_s=0)


def folders(store: EngineStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.is_dir())


class TestReuse:
    def test_a_stored_engine_is_found_by_an_equal_key(self, store: EngineStore) -> None:
        assert store.get(KEY) is None
        store.put(KEY, ENGINE)
        found = EngineStore(store.root).get(replace(KEY))
        assert found == replace(ENGINE, build_s=1.234) or found == replace(ENGINE, build_s=1.235)

    def test_every_field_of_a_key_is_covered(self) -> None:
        assert set(OTHER) == {field.name for field in fields(EngineKey)}

    @pytest.mark.parametrize("field", OTHER)
    def test_an_engine_of_another_key_is_not_found(self, store: EngineStore, field: str) -> None:
        store.put(KEY, ENGINE)
        assert store.get(replace(KEY, **{field: OTHER[field]})) is None

    def test_a_copied_entry_of_another_key_is_refused(self, store: EngineStore) -> None:
        store.put(KEY, ENGINE)
        other = replace(KEY, precision="fp16")
        shutil.copytree(store.folder(KEY), store.folder(other))
        assert store.get(other) is None
        fresh = replace(ENGINE, plan=b"for fp16")
        store.put(other, fresh)
        assert same(store.get(other), fresh) and same(store.get(KEY))


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "engine.plan").write_bytes(b"plan" * 999),
            lambda folder: (folder / "engine.plan").write_bytes(b"Plan" + b"plan" * 999),
            lambda folder: (folder / "engine.plan").unlink(),
            lambda folder: (folder / "engine.json").unlink(),
            lambda folder: (folder / "engine.json").write_text("{"),
            lambda folder: (folder / "engine.json").write_text("[]"),
            lambda folder: (folder / "engine.json").write_bytes(b"\xff"),
            lambda folder: (folder / "engine.json").write_text("{}"),
        ],
    )
    def test_a_damaged_entry_is_not_used_and_is_replaced(self, store: EngineStore, damage: Any) -> None:
        store.put(KEY, ENGINE)
        damage(store.folder(KEY))
        assert store.get(KEY) is None
        store.put(KEY, ENGINE)
        assert same(store.get(KEY))
        assert folders(store) == [store.folder(KEY).name]

    def test_every_value_of_the_description_counts(self, store: EngineStore) -> None:
        store.put(KEY, ENGINE)
        path = store.folder(KEY) / "engine.json"
        whole = json.loads(path.read_text())
        for name in ("schema_version", "key", "plan_sha256", "plan_bytes"):
            path.write_text(json.dumps({**whole, name: None}))
            assert store.get(KEY) is None

    def test_a_build_that_is_killed_leaves_nothing_to_use(
        self, store: EngineStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class KilledError(BaseException):
            pass

        def killed(*_: Any) -> None:
            raise KilledError

        for step in ("_description", "install_folder"):
            with monkeypatch.context() as patch:
                patch.setattr(store_module, step, killed)
                with pytest.raises(KilledError):
                    store.put(KEY, ENGINE)
            assert store.get(KEY) is None and folders(store) == []

    def test_old_drafts_are_removed_and_recent_ones_kept(self, store: EngineStore) -> None:
        for name in (".draft-old", ".draft-young"):
            (store.root / name).mkdir(parents=True)
        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(store.root / ".draft-old", (two_days_ago, two_days_ago))
        store.put(KEY, ENGINE)
        assert folders(store) == sorted([".draft-young", store.folder(KEY).name])


class TestSharing:
    def test_the_first_of_two_engines_is_kept(self, store: EngineStore) -> None:
        store.put(KEY, ENGINE)
        store.put(KEY, replace(ENGINE, plan=b"another plan"))
        assert same(store.get(KEY))

    def test_concurrent_builders_leave_one_complete_engine(self, store: EngineStore) -> None:
        engines = [replace(ENGINE, plan=bytes([index]) * 100_000) for index in range(8)]
        folder = store.folder(KEY)
        folder.mkdir(parents=True)  # damaged from the start, so that all of them replace it
        barrier = threading.Barrier(len(engines))
        errors: list[BaseException] = []

        def put(engine: Engine) -> None:
            barrier.wait()
            try:
                EngineStore(store.root).put(KEY, engine)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=put, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert any(same(store.get(KEY), engine) for engine in engines)
        assert folders(store) == [folder.name]


class TestRoot:
    def test_is_what_the_environment_names(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", "/somewhere/me")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("OCDSERVE_ENGINE_STORE", raising=False)
        assert EngineStore().root == Path("/somewhere/me/.cache/ocdserve/engines")
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
        assert EngineStore().root == Path("/var/cache/me/ocdserve/engines")
        monkeypatch.setenv("OCDSERVE_ENGINE_STORE", "~/engines")
        assert EngineStore().root == Path("/somewhere/me/engines")
        assert EngineStore(tmp_path).root == tmp_path


class TestKey:
    def test_names_the_network_the_runtime_and_the_gpus(self) -> None:
        rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'ocdserve[tensorrt-rtx]'")
        config = EngineConfig(("sm_120", "sm_89"), optimization_level=2)
        assert EngineKey.of(b"abc", "tensorrt-rtx", PROFILE, config, "fp16") == EngineKey(
            # SHA-256 of "abc", from FIPS 180-2.
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "tensorrt-rtx",
            rtx.__version__,
            ("sm_89", "sm_120"),
            "fp16",
            None,
            PROFILE,
            2,
            None,
            "none",
            False,
            2,
        )

    @pytest.mark.parametrize(
        ("compatibility", "targets"),
        [
            ("none", ("sm_89", "NVIDIA L4")),
            ("same_compute_capability", ("sm_89",)),
            ("ampere_plus", ("ampere_plus",)),
        ],
    )
    def test_targets_of_tensorrt_depend_on_the_compatibility(
        self, monkeypatch: pytest.MonkeyPatch, compatibility: Any, targets: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr(targets_module, "present_gpu", lambda: ("sm_89", "NVIDIA L4"))
        monkeypatch.setattr(targets_module, "load", lambda runtime: type("Library", (), {"trt": None}))
        assert targets_module.targets("tensorrt", EngineConfig(hardware_compatibility=compatibility)) == targets
