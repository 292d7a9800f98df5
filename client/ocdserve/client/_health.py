# SPDX-License-Identifier: Apache-2.0
"""What servers report of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServerHealth:
    """One server.

    Attributes:
        url: Its address.
        ready: Whether it reports the model as ready.
        left_out: Whether it currently gets no requests, after repeated failures.
        under_way: Requests of this client in flight.
        reason: Why it is not ready; None: it is.
    """

    url: str
    ready: bool
    left_out: bool
    under_way: int
    reason: str | None = None


@dataclass(frozen=True)
class Health:
    """All servers of a client.

    Attributes:
        model: The model whose readiness was checked.
        servers: One entry per server.
    """

    model: str
    servers: tuple[ServerHealth, ...]

    @property
    def ready(self) -> bool:
        """Whether at least one server is ready."""
        return any(server.ready for server in self.servers)


@dataclass(frozen=True)
class ModelInfo:
    """A served model.

    Attributes:
        name: Name on the wire.
        versions: Loaded versions.
        inputs: Data type and shape of each input by name; -1 where a dimension varies.
        outputs: The same for the outputs.
    """

    name: str
    versions: tuple[str, ...]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Capabilities:
    """What a server can do.

    Attributes:
        url: Its address.
        server: Its name, such as "triton".
        version: Its version.
        extensions: Extensions of the KServe protocol that it supports.
        models: Loaded models of this contract that detect or read.
    """

    url: str
    server: str
    version: str
    extensions: tuple[str, ...]
    models: tuple[ModelInfo, ...]

    @property
    def encoded(self) -> bool:
        """Whether a model takes encoded images."""
        return any("IMAGE" in model.inputs for model in self.models)

    @property
    def pixels(self) -> bool:
        """Whether a model takes raw pixels."""
        return any("PIXELS" in model.inputs for model in self.models)

    @property
    def polygons(self) -> bool:
        """Whether a model returns polygons."""
        return any("POINTS" in model.outputs for model in self.models)

    @property
    def reads(self) -> bool:
        """Whether a model returns texts."""
        return any("TEXTS" in model.outputs for model in self.models)

    @property
    def shared_memory(self) -> frozenset[str]:
        """Kinds of shared memory that the server supports: "system", "cuda"."""
        return frozenset(kind for kind in ("system", "cuda") if f"{kind}_shared_memory" in self.extensions)


def capabilities_from(url: str, server: Mapping[str, Any], models: list[Mapping[str, Any]]) -> Capabilities:
    """Parse KServe v2 metadata of a server and of its models."""
    return Capabilities(
        url=url,
        server=str(server.get("name", "")),
        version=str(server.get("version", "")),
        extensions=tuple(str(name) for name in server.get("extensions", ())),
        models=tuple(
            ModelInfo(
                name=str(model["name"]),
                versions=tuple(str(version) for version in model.get("versions", ())),
                inputs=_tensors(model.get("inputs", ())),
                outputs=_tensors(model.get("outputs", ())),
            )
            for model in models
        ),
    )


def _tensors(found: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {one["name"]: (one["datatype"], tuple(int(side) for side in one["shape"])) for one in found}
