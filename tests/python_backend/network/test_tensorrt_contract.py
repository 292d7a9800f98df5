# SPDX-License-Identifier: Apache-2.0
"""What we use of TensorRT and TensorRT-RTX, held to their own Python modules; neither needs a GPU for that.

TensorRT's libraries come from NVIDIA's index only, its bindings from PyPI: they are imported over empty libraries.
"""

import ast
import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import imaginary_tensorrt
import pybind_api
import pytest
from imaginary_tensorrt import ImaginaryTensorRt
from library_use import uses_of
from pybind_api import Api, Signature, api_of

REPOSITORY = Path(__file__).resolve().parents[3]
FUNCTIONS = REPOSITORY / "tests" / "fakes" / "tensorrt_functions.c"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
BINDINGS = "tensorrt_bindings"

# What one of the two has alone; our code asks for the runtime's name before it uses that.
RTX_ALONE = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
# Some of what must be among the uses, or they were not found.
KNOWN_USES = {
    "Builder.build_serialized_network",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.nvtx_verbosity",
    "IExecutionContext.set_device_memory",
    "ILayer.get_output",
    "ILogger.log",
    "INetworkDefinition.get_layer",
    "IOptimizationProfile.set_shape",
    "IProgressMonitor.step_complete",
    "ITimingCache.combine",
    "OnnxParser.parse",
    "ParserError.node_operator",
    "PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10",
    "Runtime.deserialize_cuda_engine",
    "uint8",
}


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Api:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc): TensorRT's bindings need libraries to be linked to")
    if importlib.util.find_spec(BINDINGS) is None:
        pytest.skip("tensorrt-cu13-bindings is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("libraries")
    for name in LIBRARIES:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", str(FUNCTIONS), "-o", str(folder / name)]
        subprocess.run(command, check=True)
    # In a process of its own: these libraries would be taken for the real ones.
    libraries = [str(folder / name) for name in LIBRARIES]
    found = subprocess.run(
        [sys.executable, pybind_api.__file__, BINDINGS, *libraries], check=True, stdout=subprocess.PIPE, text=True
    )
    return Api.from_json(found.stdout)


@pytest.fixture(scope="module")
def rtx() -> Api:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
    return api_of(importlib.import_module("tensorrt_rtx"))


def sources() -> list[Path]:
    """The files that use the module or name its classes."""

    def is_use(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.module in ("tensorrt", "tensorrt_rtx")
        return isinstance(node, ast.Attribute) and (
            node.attr == "trt" or (isinstance(node.value, ast.Name) and node.value.id == "trt")
        )

    folders = (REPOSITORY / name / "ocdserve" for name in ("builder", "client", "perf", "python_backend"))
    texts = {path: path.read_text("utf-8") for folder in folders for path in sorted(folder.rglob("*.py"))}
    named = {path: text for path, text in texts.items() if "trt" in text or "from tensorrt" in text}  # saves a second
    return [path for path, text in named.items() if any(map(is_use, ast.walk(ast.parse(text))))]


def test_tensorrt_has_all_that_we_use_and_takes_our_calls(tensorrt: Api) -> None:
    uses = uses_of(sources(), tensorrt)
    assert (uses.missing, uses.wrong) == (RTX_ALONE, [])
    assert uses.found >= KNOWN_USES


def test_tensorrt_rtx_has_all_that_we_use_and_takes_our_calls(rtx: Api) -> None:
    uses = uses_of(sources(), rtx)
    assert (uses.missing, uses.wrong) == (set(), [])
    assert uses.found >= KNOWN_USES | RTX_ALONE | {"IRuntimeCache.serialize", "IRuntimeCache.deserialize"}


def test_tensorrt_has_the_levels_of_our_options(tensorrt: Api) -> None:
    from ocdserve.builder.engine.options import HardwareCompatibility

    levels = {name.upper() for name in get_args(HardwareCompatibility)}
    assert levels == {"NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"}
    assert levels <= set(tensorrt.classes["HardwareCompatibilityLevel"].members)


def test_types_of_the_network_have_the_names_of_the_module(tensorrt: Api, rtx: Api) -> None:
    for api in (tensorrt, rtx):
        assert {"UINT8", "FLOAT", "HALF", "INT8"} <= set(api.classes["DataType"].members)
        assert {"CONVOLUTION", "DECONVOLUTION", "CONSTANT", "QUANTIZE", "DEQUANTIZE"} <= set(
            api.classes["LayerType"].members
        )


USES = """
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorrt import ICudaEngine, IExecutionContext


def queue(engine: "ICudaEngine", library: Any, stream: Any) -> None:
    trt = library.trt
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_input_shape("image", (1, 2))
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    {}
"""


@pytest.mark.parametrize(
    ("line", "missing", "wrong"),
    [
        ("context.execute_async_v3(stream.handle)", set(), None),
        ("context.execute_async_v4(stream.handle)", {"IExecutionContext.execute_async_v4"}, None),
        ("context.execute_async_v3(stream.handle, 1)", set(), "execute_async_v3 does not take"),
        ("context.execute_async_v3()", set(), "execute_async_v3 does not take"),
        ("context.execute_async_v3(stream=1)", set(), "execute_async_v3 does not take"),
        ("context.execute_async_v3(stream_handle=1)", set(), None),
        ("engine.create_execution_context(trt.ProfilingVerbosity.NONE)", set(), "create_execution_context does not"),
        ("trt.Runtime(library.logger).deserialize_cuda_engine(b'').get_tensor()", {"ICudaEngine.get_tensor"}, None),
        ("[engine.get_tensor_profile_shape('x', i)[0].no for i in range(2)]", {"Dims.no"}, None),
        ("context.engine = engine", set(), "IExecutionContext.engine cannot be set"),
        ("context.nvtx_verbosity = trt.BuilderFlag.TF32", set(), "nvtx_verbosity cannot be set to BuilderFlag"),
        ("trt.BuilderFlag.NOTHING", {"BuilderFlag.NOTHING"}, None),
        ("stream.anything.set_input_shape('image', (1, 2))", set(), "whose is set_input_shape?"),
    ],
)
def test_a_use_that_the_module_does_not_take_is_found(
    tensorrt: Api, tmp_path: Path, line: str, missing: set[str], wrong: str | None
) -> None:
    path = tmp_path / "uses.py"
    path.write_text(USES.format(line))
    uses = uses_of([path], tensorrt)
    assert uses.missing == missing
    assert [wrong in text for text in uses.wrong if wrong] == [True] * bool(wrong) and bool(uses.wrong) == bool(wrong)


def check_stand_in(stand_in: Any, api: Api, made: object) -> None:
    """A stand-in has no public member that the real class lacks, and its methods are called alike."""
    real = api.classes[stand_in.stands_for]
    functions = {name: value for name, value in vars(stand_in).items() if name[0] != "_" and name != "stands_for"}
    assert {*functions, *(name for name in vars(made) if name[0] != "_")} <= set(real.members)
    for name, value in functions.items():
        if isinstance(value, property):
            assert real.members[name].kind == "property", name
        else:
            names = value.__code__.co_varnames[1 : value.__code__.co_argcount]
            assert any(_is_called_by(names, one) for one in real.members[name].signatures), (stand_in, name)


def _is_called_by(names: tuple[str, ...], signature: Signature) -> bool:
    known = [one.name for one in signature.parameters]
    required = [one.name for one in signature.parameters if not one.is_optional]
    return list(names) == known[: len(names)] and set(required) <= set(names)


def test_the_imaginary_tensorrt_offers_nothing_that_the_real_one_lacks(tensorrt: Api, rtx: Api, device: Any) -> None:
    module = ImaginaryTensorRt(device, None, print)
    made = {
        "Cache": imaginary_tensorrt.Cache(module),
        "RuntimeConfig": imaginary_tensorrt.RuntimeConfig(module),
        "Engine": module.engine,
        "Context": imaginary_tensorrt.Context(module, [], None),
        "Runtime": module.Runtime(None),
    }
    for stand_in in imaginary_tensorrt.STAND_INS:
        alone = stand_in.stands_for in ("IRuntimeCache", "IRuntimeConfig")
        for api in (rtx,) if alone else (tensorrt, rtx):
            check_stand_in(stand_in, api, made[stand_in.__name__])
    for name in imaginary_tensorrt.NAMES:
        owner, _, member = name.partition(".")
        assert hasattr(module, owner)
        for api in (rtx,) if owner in RTX_ALONE else (tensorrt, rtx):
            assert owner in api.names and (not member or member in api.classes[owner].members), name


def test_what_the_builder_s_tests_add_to_tensorrt_rtx_is_tensorrt_s(tensorrt: Api, rtx: Api) -> None:
    import rtx_as_tensorrt

    for stand_in in rtx_as_tensorrt.STAND_INS:
        check_stand_in(stand_in, tensorrt, object.__new__(stand_in))


def test_no_other_test_imagines_tensorrt() -> None:
    """A class with a distinct method of an engine or a context is one of those above."""
    distinct = ("def execute_async_v3", "def deserialize_cuda_engine", "def build_serialized_network")
    files = [
        path.name
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        if any(name in path.read_text("utf-8") for name in distinct) and path != Path(__file__)
    ]
    assert files == ["imaginary_tensorrt.py", "rtx_as_tensorrt.py"]
