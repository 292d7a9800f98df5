# SPDX-License-Identifier: Apache-2.0
"""Fuzz cases: seeds of everything that ocdserve reads, their mutations, and the readers.

A case is a kind and a number, from which it is made again.
"""

import copy
import functools
import hashlib
import io
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageSequence

from ocdserve.backend import PRESETS, Bundle, DetectorSpec
from ocdserve.backend.network.rewrite.fold import REWRITES, folded_network
from ocdserve.backend.publish.tuning import Tuning
from ocdserve.backend.stages.image import decode
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.tao.spec import Spec, load_spec
from ocdserve.builder.tao.spec.field import plain
from ocdserve.contract import Limits, OcdserveError, RequestParameters

_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_TEXTS = (
    *("null", "true", "[]", "{}", '""', "-1", "0", "1e999", "-1e-300", "NaN", "Infinity", "1_0", "٣", "0.30000000001"),
    *(
        "9" * 400,
        "9" * 5000,
        "[" * 2000,
        '{"a":' * 2000,
        '"' + "x" * 5000 + '"',
        "\\u0000",
        "\\ud800",
        "${a}",
        "${a:b}",
    ),
    *(
        "*",
        "&a",
        "!!python/object:os.system",
        "? ",
        "- ",
        ": ",
        "# ",
        "|\n",
        "---\n",
        "\t",
        "<<: *a",
        "2026-11-28",
        "~",
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 32, 64, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *(
        "",
        "a",
        "..",
        "/",
        "x" * 5000,
        "\0",
        "\ud800",
        "RGB",
        "tao",
        "fixed",
        "???",
        "${results_dir}",
        "${x}",
        "${oc.env:A}",
    ),
    *([], {}, [[]], [1], ["a"], {"a": 1}, [None] * 3, [1e-300] * 3, {"": None}),
)


@dataclass(frozen=True)
class Kind:
    """Something that is read.

    Attributes:
        seeds: Valid inputs.
        mutate: Makes an invalid or odd one of a seed.
        read: Reads it from bytes; the number of the case varies how, and the folder may be written to.
    """

    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[random.Random, Sequence[bytes]], bytes]
    read: Callable[[bytes, int, Path], object]


def case(kind: str, number: int) -> bytes:
    """The input of a case."""
    chance = random.Random(f"{kind} {number}")
    return KINDS[kind].mutate(chance, KINDS[kind].seeds())


def run_case(kind: str, number: int, folder: Path) -> str:
    """Read a case's input; returns `read` or `refused`. What else is raised is a fault."""
    try:
        KINDS[kind].read(case(kind, number), number, folder)
    except OcdserveError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        assert len(message) < 100_000, f"a message of {len(message)} characters"
        return "refused"
    return "read"


def changed_bytes(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with flipped, overwritten, removed, doubled or foreign bytes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8, 40))):
        if not data:
            break
        # Headers matter more than pixels.
        at = chance.randrange(min(len(data), chance.choice((32, 200, 1 << 30))))
        action = chance.randrange(8)
        if action < 2:
            data[at] ^= 1 << chance.randrange(8)
        elif action < 4:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif action == 4:
            form = chance.choice("<>") + chance.choice("HIQ")
            value = chance.choice(_EXTREMES) & ((1 << 8 * struct.calcsize(form)) - 1)
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif action == 5:
            del data[at : at + chance.choice((1, 4, 100, len(data)))]
        elif action == 6:
            data[at:at] = data[at : at + chance.choice((1, 8, 500))] * chance.choice((1, 2, 50))
        else:
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[at : at + chance.randrange(1, 100)] = other[start : start + chance.randrange(1, 100)]
    return bytes(data)


def changed_text(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with other values, names and signs; now and then with changed bytes."""
    if chance.random() < 0.2:
        return changed_bytes(chance, seeds)
    text = chance.choice(seeds).decode()
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = [at for at, symbol in enumerate(text) if symbol in ' :,[{]}"\n=']
        first = chance.choice(places or [0])
        last = chance.choice(places or [0]) if chance.random() < 0.1 else next((p for p in places if p > first), first)
        inserted = chance.choice((*_TEXTS, "", text[slice(*sorted((first, last)))]))
        text = text[: first + 1] + inserted + text[max(first + 1, last) :]
    return text.encode(errors="surrogatepass")


def changed_values(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A JSON or YAML seed of the same form with other values and names in places; now and then with changed text."""
    if chance.random() < 0.4:
        return changed_text(chance, seeds)
    text = chance.choice(seeds)
    content = json.loads(text) if text.startswith(b"{") else yaml.safe_load(text)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place: Any = content
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.2:
                break
            place = place[key]
        else:
            continue
        if isinstance(place, dict) and chance.random() < 0.2:
            place[chance.choice(["x", "", 1, None, f"{key}s"])] = place.pop(key)
        else:
            values = [*_VALUES, chance.uniform(-2, 2), chance.randrange(4000), place[key]]
            place[key] = copy.deepcopy(chance.choice(values))
    return (json.dumps(content) if text.startswith(b"{") else yaml.safe_dump(content)).encode(errors="surrogatepass")


@functools.cache
def images() -> tuple[bytes, ...]:
    """Image files of all formats and of most of their variants, 96 x 64."""
    rgb = Image.new("RGB", (96, 64), (250, 240, 230))
    ImageDraw.Draw(rgb).text((8, 16), "Text 25", (20, 20, 20), font_size=24)
    rgba, grey = rgb.convert("RGBA"), rgb.convert("L")
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    turned = rgb.rotate(180)
    exif = Image.Exif()
    exif[274] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    written: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True, "quality": 50}),
        (grey, "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [turned.copy()]}),
        (rgb, "PNG", {"exif": exif}),
        (rgba, "PNG", {}),
        (deep, "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 0}),
        (rgb, "PNG", {"save_all": True, "append_images": [turned.copy()]}),
        (rgb, "WEBP", {}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [turned.copy()]}),
        (rgb, "BMP", {}),
        (rgb.quantize(16), "BMP", {}),
        (rgb, "GIF", {"save_all": True, "append_images": [turned.copy()]}),
        (rgb, "JPEG2000", {}),
        (rgb, "AVIF", {}),
        (rgb, "TIFF", {"save_all": True, "append_images": [turned.copy()]}),
        (rgb, "TIFF", {"big_tiff": True}),
        (deep, "TIFF", {}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (rgb.convert("LAB"), "TIFF", {}),
        *((rgb, "TIFF", {"compression": f"tiff_{name}"}) for name in ("lzw", "adobe_deflate", "jpeg")),
        *((rgb.convert("1"), "TIFF", {"compression": name}) for name in ("group3", "group4", "packbits")),
    ]
    found = []
    for image, form, options in written:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        found.append(stream.getvalue())
        assert len(list(ImageSequence.Iterator(Image.open(stream)))) == 1 + len(options.get("append_images", ()))
    return tuple(found)


def _read_image(data: bytes, number: int, folder: Path) -> object:
    return decode(data, page=(None, None, 1, 2)[number % 4])


@functools.cache
def _detectors() -> tuple[bytes, ...]:
    return tuple(spec.to_json().encode() for spec in PRESETS.values())


def _read_detector(data: bytes, number: int, folder: Path) -> object:
    (folder / "detector.json").write_bytes(data)
    (folder / "model.onnx").touch()
    manifest = folder / "manifest.json"
    manifest.unlink(missing_ok=True)
    return Bundle.load(folder).spec.resize.sizes(100, 1000)


def _manifests() -> Sequence[bytes]:
    contents = {"detector.json": DetectorSpec().to_json().encode(), "model.onnx": b""}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return (json.dumps({"schema_version": 1, "sha256": hashes}).encode(),)


def _read_manifest(data: bytes, number: int, folder: Path) -> object:
    (folder / "detector.json").write_text(DetectorSpec().to_json())
    (folder / "model.onnx").touch()
    (folder / "manifest.json").write_bytes(data)
    return Bundle.load(folder)


def _caches() -> Sequence[bytes]:
    scales = {f"layer/{index}:0": 0.01 * (index + 1) for index in range(6)}
    whole = CalibrationCache(scales, onnx_sha256="ab" * 32).to_text().encode()
    return whole, b"TRT-8601-EntropyCalibration2\ndata: 3c010204\n(Unnamed Layer* 3) [Constant]_output: 3f800000\n"


def _read_cache(data: bytes, number: int, folder: Path) -> object:
    cache = CalibrationCache.parse(data)
    cache.check_bound_to("ab" * 32, list(cache.scales)[:3], force=number % 2 == 0)
    return cache.to_text()


def _read_file(read: Callable[[Path], object]) -> Callable[[bytes, int, Path], object]:
    def reader(data: bytes, number: int, folder: Path) -> object:
        path = folder / "file"
        path.write_bytes(data)
        return read(path)

    return reader


@functools.cache
def _tunings() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuning.json"
        Tuning("onnxruntime", threads=1, streams=1, queue_size=40).save(path)
        return (path.read_bytes(),)


@functools.cache
def _specs() -> tuple[bytes, ...]:
    small = {
        "results_dir": "/r",
        "dataset": {"validate_dataset": {"data_path": ["a", "${results_dir}/b"], "args": {"ignore_tags": ["*"]}}},
        "gen_trt_engine": {"width": 640, "height": 352, "tensorrt": {"data_type": "int8", "workspace_size": 1024}},
    }
    # The whole one takes a tenth of a second to read.
    return tuple(yaml.safe_dump(values).encode() for values in (*[small] * 9, plain(Spec())))


def _read_spec(data: bytes, number: int, folder: Path) -> object:
    path = folder / "spec.yaml"
    path.write_bytes(data)
    overrides = ()
    if number % 5 == 0:
        # The text as an override, as the shell hands it on: neither NUL nor half characters.
        chance = random.Random(number)
        lines = data.decode(errors="replace").replace("\0", "").split("\n")
        overrides = (f"gen_trt_engine.{chance.choice(('width', 'trt_engine', 'x'))}={chance.choice(lines)}",)
    return load_spec(path if number % 5 else None, overrides)


@functools.cache
def networks() -> tuple[bytes, ...]:
    """Small networks of text detectors, with branches, a gate and a head as the rewriting looks for."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", c, "H", "W")) for name, c in (("x", 3), ("p", 1))
    ]
    chance = np.random.default_rng(0)
    weights = {"a": (4, 3, 3, 3), "b": (4, 4, 1, 1), "c": (1, 8, 1, 1)}
    constants = [
        numpy_helper.from_array(chance.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["f"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Conv", ["g", "b"], ["h"]),
        helper.make_node("HardSigmoid", ["h"], ["i"]),
        helper.make_node("Mul", ["f", "i"], ["j"]),
        helper.make_node("Add", ["f", "j"], ["k"]),
        helper.make_node("Concat", ["k", "f"], ["l"], axis=1),
        helper.make_node("Conv", ["l", "c"], ["m"]),
        helper.make_node("Sigmoid", ["m"], ["p"]),
    ]
    graph = helper.make_graph(nodes, "seed", ends[:1], ends[1:], constants)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["m"], ["o"])], "b", [], [helper.make_empty_tensor_value_info("o")]
    )
    branching = onnx.GraphProto()
    branching.CopyFrom(graph)
    branching.node[-1].CopyFrom(helper.make_node("If", ["yes"], ["p"], then_branch=branch, else_branch=branch))
    branching.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    opset = [helper.make_opsetid("", 17)]
    return tuple(
        helper.make_model(each, opset_imports=opset, ir_version=9).SerializeToString() for each in (graph, branching)
    )


def changed_network(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A network with changed bytes, or a well-formed one whose nodes are wired, named or sized differently."""
    if chance.random() < 0.4:
        return changed_bytes(chance, seeds)
    model = onnx.ModelProto.FromString(chance.choice(seeds))
    nodes = model.graph.node
    for _ in range(chance.choice((1, 1, 2, 3))):
        node = chance.choice(nodes)
        names = [name for each in nodes for name in (*each.input, *each.output)]
        action = chance.randrange(7)
        if action == 0 and node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice([*names, "", "nowhere"])
        elif action == 1 and node.output:
            node.output[0] = chance.choice(names)
        elif action == 2:
            node.op_type = chance.choice(
                ["Loop", "Magic", "Identity", "Resize", "Reshape", "ConstantOfShape", "Tile", ""]
            )
        elif action == 3:
            nodes.remove(node)
        elif action == 4 and node.attribute:
            number = chance.choice((-1, 0, 2**31, 2**62))
            node.attribute[0].CopyFrom(helper.make_attribute(node.attribute[0].name, number))
        elif action == 5:
            tensor = chance.choice(model.graph.initializer)
            tensor.dims[:] = [chance.choice((0, 1, -1, 2**40)) for _ in range(chance.randrange(5))]
        else:
            value = chance.choice([*model.graph.input, *model.graph.output])
            value.type.tensor_type.elem_type = chance.randrange(25)
        if not nodes:
            break
    return bytes(model.SerializeToString())


def _read_network(data: bytes, number: int, folder: Path) -> object:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return folded_network(path, DetectorSpec().network, rewrites=REWRITES["openvino"])


def _parameters() -> Sequence[bytes]:
    values = {"thresh": 0.3, "box_thresh": "0.6", "max_candidates": 100, "polygons": True, "page": "2", "min_size": 3}
    return json.dumps(values).encode(), b'{"unclip_ratio": 2.0}', b"{}"


def _read_parameters(data: bytes, number: int, folder: Path) -> object:
    return RequestParameters.from_json(data.decode(errors="replace"), Limits())


KINDS = {
    "images": Kind(images, changed_bytes, _read_image),
    "detector": Kind(_detectors, changed_values, _read_detector),
    "manifest": Kind(_manifests, changed_values, _read_manifest),
    "cache": Kind(_caches, changed_text, _read_cache),
    "tuning": Kind(_tunings, changed_values, _read_file(Tuning.load)),
    "spec": Kind(_specs, changed_values, _read_spec),
    "onnx": Kind(networks, changed_network, _read_network),
    "parameters": Kind(_parameters, changed_values, _read_parameters),
}
PARSERS = tuple(name for name in KINDS if name != "images")
