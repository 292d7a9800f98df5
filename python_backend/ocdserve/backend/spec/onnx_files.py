# SPDX-License-Identifier: Apache-2.0
"""Tensors and metadata of an ONNX network, and the files next to it that hold the data of some tensors."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocdserve.contract import InvalidInputError

# Key of the entry that names the file of a tensor.
_LOCATION = b"location"


def tensors_of(model: Any) -> Iterator[Any]:
    """All tensors (`onnx.TensorProto`) that a network holds, those of branches and functions included."""
    yield from model.graph.initializer
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    while bodies:
        for attribute in (attribute for node in bodies.pop() for attribute in node.attribute):
            yield from (attribute.t,) if attribute.HasField("t") else ()
            yield from attribute.tensors
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graph.initializer
                bodies.append(graph.node)


def external_files(path: Path) -> list[str]:
    """Files with data of an ONNX network, relative to its folder; of one that cannot be read there are none.

    Raises:
        InvalidInputError: One is outside of the folder, or does not exist.
    """
    with path.open("rb") as file:
        if not path.stat().st_size or mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(_LOCATION) < 0:
            return []
    # Imported here: few networks have such files, and onnx takes 30 MB in the launcher.
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf and onnx raise various types for a damaged file; loading the network says so
        return []
    entries = (entry for tensor in tensors_of(model) if tensor.data_location for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == _LOCATION.decode()})
    for name in names:
        if not is_file_of(path.parent, name):
            raise InvalidInputError(
                f"{path} refers to the file {name!r}, which is outside of the bundle or missing. Put it next to the "
                "network."
            )
    return names


def metadata(path: Path) -> dict[str, str]:
    """Metadata of an ONNX network, which some exporters write; of one that cannot be read there is none."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # see above
        return {}
    return {entry.key: entry.value for entry in model.metadata_props}


def is_file_of(directory: Path, name: str) -> bool:
    """Whether a folder, or one in it, holds this file; links to others do not count."""
    path = directory / name
    try:
        return path.is_file() and path.resolve().is_relative_to(directory.resolve())
    except (OSError, ValueError):  # no name of a file, such as one that is too long
        return False
