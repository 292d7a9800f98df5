# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10 or 11 with a GPU, as far as building goes: TensorRT-RTX under its name, with what it lacks.

As in `imaginary_tensorrt`, a class names the one that it stands for.
"""

from types import ModuleType
from typing import Any

import pytest
import tensorrt_rtx as rtx

from ocdserve.backend.network.engine_library import Library, load
from ocdserve.builder.engine import build, layers, targets


class Times:
    """Kernel times are words."""

    stands_for = "ITimingCache"

    def __init__(self, words: list[bytes]) -> None:
        self._words = words

    def _add(self, word: bytes) -> None:
        self._words.append(word)

    def combine(self, input_cache: "Times", ignore_mismatch: bool) -> bool:
        if ignore_mismatch or b"foreign" in input_cache._words:
            return False
        self._words += [word for word in input_cache._words if word not in self._words]
        return True

    def serialize(self) -> bytes:
        return b" ".join(self._words)


class Config:
    """A builder configuration of TensorRT-RTX with the timing cache that it lacks."""

    stands_for = "IBuilderConfig"

    def __init__(self, real: Any) -> None:
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_times", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Times | None:
        return None if serialized_timing_cache == b"not a cache" else Times(serialized_timing_cache.split())

    def set_timing_cache(self, cache: Times, ignore_mismatch: bool) -> bool:
        if ignore_mismatch or b"foreign" in cache._words:
            return False
        object.__setattr__(self, "_times", cache)
        return True


class Builder:
    """A builder of TensorRT-RTX that measures kernels and reports to `made_by`."""

    stands_for = "Builder"

    def __init__(self, logger: Any, made_by: "RtxAsTensorRt") -> None:
        self._real = rtx.Builder(logger)
        self._fake = made_by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_network(self, flags: int) -> Any:
        self._fake.network_flags.append(flags)
        return self._real.create_network(flags)

    def create_optimization_profile(self) -> Any:
        self._fake.profiles.append(self._real.create_optimization_profile())
        return self._fake.profiles[-1]

    def create_builder_config(self) -> Any:
        self._fake.config = Config(self._real.create_builder_config())
        return self._fake.config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if config._times:
            config._times._add(b"mine")
        self._fake.while_building()
        self._fake.plan = self._real.build_serialized_network(network, config._real)
        return self._fake.plan


class RtxAsTensorRt:
    """Installs the module for the builder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str = "10.13.0.35") -> None:
        self.network_flags: list[int] = []
        self.profiles: list[Any] = []
        self.config: Any = None
        self.plan: Any = None
        self.while_building: Any = lambda: None
        module = ModuleType("tensorrt")
        module.__dict__.update(
            {**vars(rtx), "__version__": version, "Builder": lambda logger: Builder(logger, made_by=self)}
        )
        real = load("tensorrt-rtx")
        library = Library("tensorrt", module, real.logger, real.messages)
        for user in (build, layers, targets):
            monkeypatch.setattr(user, "load", lambda runtime: library)
        for user in (layers, targets):
            monkeypatch.setattr(user, "present_gpu", lambda: ("sm_89", "NVIDIA L4"))


STAND_INS = (Times, Config, Builder)
