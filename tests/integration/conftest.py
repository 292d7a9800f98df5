# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the real server: tiny model repositories, free ports, and leftovers of a server."""

import os
import socket
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.serve import ServeOptions, TritonServer
from ocdserve.backend.serve import running_server as product_running_server

_TENSORS = """
max_batch_size: 8
input [ { name: "X" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_UINT8 dims: [ -1 ] } ]
"""


class TinyRepository:
    """A model repository of identity models (input X, output Y, uint8, one dimension)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model(self, name: str, *, load_s: float = 0.0, execute_s: float = 0.0, instances: int = 1) -> None:
        """Add a Python model that sleeps while it loads and in each execution."""
        self._write(
            name,
            f'backend: "python"\ndynamic_batching {{ }}\ninstance_group [ {{ kind: KIND_CPU count: {instances} }} ]',
        )
        self.code(name, f"time.sleep({load_s})", f"time.sleep({execute_s})")

    def code(self, name: str, initialize: str, execute: str = "pass") -> None:
        """Replace the model's code: one statement for `initialize`, one for `execute`."""
        source = f"""
            import time
            import triton_python_backend_utils as pb_utils


            class TritonPythonModel:
                def initialize(self, args):
                    {initialize}

                def execute(self, requests):
                    {execute}
                    inputs = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
                    return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", x)]) for x in inputs]
        """
        (self.path / name / "1" / "model.py").write_text(textwrap.dedent(source))

    def ensemble(self, name: str, first: str, second: str) -> None:
        """Add an ensemble of two models, one after the other."""
        self._write(
            name,
            'platform: "ensemble"\nensemble_scheduling { step ['
            f'{{ model_name: "{first}" model_version: -1 input_map {{ key: "X" value: "X" }}'
            ' output_map { key: "Y" value: "between" } },'
            f'{{ model_name: "{second}" model_version: -1 input_map {{ key: "X" value: "between" }}'
            ' output_map { key: "Y" value: "Y" } } ] }',
        )

    def _write(self, name: str, config: str) -> None:
        (self.path / name / "1").mkdir(parents=True)
        (self.path / name / "config.pbtxt").write_text(f'name: "{name}"{_TENSORS}{config}\n')


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[Path], TinyRepository]:
    """A function that makes an empty repository to fill, in a directory."""
    return TinyRepository


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRepository:
    """An empty repository to fill."""
    return TinyRepository(tmp_path / "models")


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """A function that finds n free ports of the loopback interface, all different."""

    def find(n: int) -> list[int]:
        with ExitStack() as stack:
            listeners = [stack.enter_context(socket.socket()) for _ in range(n)]
            for listener in listeners:
                listener.bind(("127.0.0.1", 0))
            return [int(listener.getsockname()[1]) for listener in listeners]

    return find


@pytest.fixture(scope="session")
def running_server() -> Callable[..., AbstractContextManager[TritonServer]]:
    """`with running_server(repository, **options) as server:` a ready, supervised server on free ports.

    Every message of the supervisor is appended to the list `messages`, if one is given; `on_log` gets Triton's lines.
    """

    @contextmanager
    def run(
        repository: Path,
        messages: list[str] | None = None,
        on_log: Callable[[str], object] = lambda line: None,
        **options: Any,
    ) -> Iterator[TritonServer]:
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        received = [] if messages is None else messages
        with product_running_server(
            ServeOptions(repository, **{**ports, **options}), received.append, on_log=on_log
        ) as server:
            yield server

    return run


@pytest.fixture(scope="session")
def leftovers() -> Callable[[int], list[str]]:
    """A function that lists what the launcher with a certain pid has left: processes, segments, directories."""

    def find(launcher: int) -> list[str]:
        mark = f"-{launcher}-"
        found = [name for name in (*os.listdir("/dev/shm"), *os.listdir(tempfile.gettempdir())) if _is_ours(name, mark)]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != launcher:
                try:
                    arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if "ocdserve-" in arguments and mark in arguments:
                    found.append(f"process {entry.name}: {arguments[:200]!r}")
        return found

    return find


def _is_ours(name: str, mark: str) -> bool:
    return name.startswith("ocdserve-") and mark in name


@pytest.fixture(scope="session")
def red_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose probability is the red channel, so that a bright rectangle is a word."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from ocdserve.backend import Bundle, DetectorSpec, NetworkSpec, ResizePolicy

    folder = tmp_path_factory.mktemp("red")
    weights = numpy_helper.from_array(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1), "weights")
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", c, "H", "W")) for name, c in (("x", 3), ("p", 1))
    ]
    node = helper.make_node("Conv", ["x", "weights"], ["p"], kernel_shape=[1, 1])
    graph = helper.make_graph([node], "red", [shapes[0]], [shapes[1]], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "red.onnx")
    spec = DetectorSpec(
        network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)), resize=ResizePolicy("short_side", 64, 256)
    )
    return Bundle(spec, folder / "red.onnx").save(folder / "bundle").model_path.parent


@pytest.fixture(scope="session")
def default_server(
    tmp_path_factory: pytest.TempPathFactory, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> Iterator[TritonServer]:
    """The default detector and recogniser, published and served for the whole session."""
    from ocdserve.backend.publish.repository import PublishOptions, publish

    repository = publish(PublishOptions(tmp_path_factory.mktemp("default") / "repository", recogniser="default"))
    with running_server(repository, shared_memory=repository.parent / "token") as server:
        yield server


@pytest.fixture(scope="session")
def default_detector() -> Any:
    """The default detector in this process."""
    from ocdserve.backend import Detector

    return Detector.load()
