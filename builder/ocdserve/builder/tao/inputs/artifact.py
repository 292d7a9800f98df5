# SPDX-License-Identifier: Apache-2.0
"""Open the value of `evaluate.trt_engine` or `inference.trt_engine`: an engine, an ONNX file or a bundle."""

import filecmp
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from ocdserve.backend import Bundle
from ocdserve.backend.device.probe import gpu_count
from ocdserve.backend.files import cache_folder, draft_folder, install_folder
from ocdserve.backend.network.options import GPU_RUNTIMES
from ocdserve.builder.graph.deformable import lower_deformable
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.graph.exported import file_sha256
from ocdserve.builder.tao.inputs.dataset import checkpoint_kind, is_archive
from ocdserve.contract import InvalidInputError

BUNDLE_SUFFIX = ".bundle"
CACHE_VARIABLE = "OCDSERVE_ONNX_CACHE"
# Counted up when the normal form changes.
_CACHE_VERSION = 1
# Networks that the cache keeps, those used last; one that was used an hour ago may be about to be opened.
_KEPT, _IN_USE_S = 10, 3600.0
# What reading a folder of the cache raises that is absent or damaged.
_UNUSABLE = (OSError, ValueError, KeyError, TypeError)
# The CPU runtime that executes the graphs of engines, including FP16 and INT8, unchanged.
_CPU_FALLBACK = "onnxruntime"


@dataclass(frozen=True)
class Artifact:
    """A network that can be executed.

    Attributes:
        bundle: Its detector, with the colour order, size and thresholds that it was built with. A caller may replace
            `bundle.spec`, but the colour order and size of an engine are fixed.
        runtime: For `RuntimeOptions`; None: the fastest one of the CPU.
        max_batch: Largest batch; None: any.
        notes: For the user, a sentence each, for example that the ONNX replaces an engine.
    """

    bundle: Bundle
    runtime: str | None
    max_batch: int | None
    notes: tuple[str, ...] = ()


def bundle_folder(engine: Path) -> Path:
    """Return the bundle's folder that gen_trt_engine writes next to a file: `x.bundle` for `x.engine`."""
    return engine.with_name(engine.name.removesuffix(engine.suffix) + BUNDLE_SUFFIX)


def open_artifact(path: Path, gpu: bool | None = None) -> Artifact:
    """Open a network.

    Args:
        path: Engine or quantised ONNX written by gen_trt_engine, with its bundle next to it; any other ONNX file of an
            OCDNet, including NVIDIA's deformable convolutions; or a bundle's folder.
        gpu: Whether there is a GPU to execute an engine; None: detect one.

    Raises:
        InvalidInputError: The file does not exist or is none of these, or an engine has no bundle next to it.
    """
    if path.is_dir():
        return _of_bundle(Bundle.load(path), gpu, path)
    if not path.is_file():
        raise InvalidInputError(
            f"there is no engine, ONNX or bundle {str(path)!r}; build it with `ocdnet gen_trt_engine`"
        )
    if checkpoint_kind(path):
        raise InvalidInputError(
            f"{str(path)!r} is a checkpoint, not an engine, ONNX or bundle: name it as evaluate.checkpoint or "
            "inference.checkpoint, with an empty trt_engine, or export it to ONNX with `ocdnet export`"
        )
    if is_archive(path):
        raise InvalidInputError(f"{str(path)!r} is an archive; extract it first and name the engine or ONNX in it")
    folder = bundle_folder(path)
    if folder.is_dir():
        bundle = Bundle.load(folder)
        files = filter(None, (bundle.engine_path, bundle.model_path))
        if any(filecmp.cmp(path, file, shallow=False) for file in files):
            return _of_bundle(bundle, gpu, path)
    if _is_onnx(path):
        return _of_onnx(path)
    bundle_state = f"the bundle {folder} is of another engine" if folder.is_dir() else f"there is no {folder}"
    raise InvalidInputError(
        f"{str(path)!r} is not ONNX, and {bundle_state}. An engine is opened through the bundle that gen_trt_engine "
        "writes next to it: copy both, or rebuild it with `ocdnet gen_trt_engine` (an engine of TAO Deploy does not "
        "describe its network)."
    )


def exporter_note(path: Path) -> str | None:
    """Return a warning if the tensors of an ONNX file are not named as TAO names them."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    if (inputs, outputs) == (["input"], ["pred"]):
        return None
    return (
        f"{path.name} may be no OCDNet: TAO's exports have the input 'input' and the output 'pred', this one has "
        f"{inputs} and {outputs}. It gets TAO's normalisation; `ocdserve build --onnx {path}` knows those of other "
        "exporters."
    )


def _of_bundle(bundle: Bundle, gpu: bool | None, path: Path) -> Artifact:
    wanted = bundle.spec.runtime
    if wanted not in GPU_RUNTIMES:
        return Artifact(bundle, wanted, None)
    has_gpu = gpu_count() > 0 if gpu is None else gpu
    if has_gpu:
        return Artifact(bundle, wanted, _max_batch(bundle))
    note = (
        f"{path.name} is an engine of {wanted}, and this machine has no GPU: the ONNX of its bundle, of the same "
        "types, is executed by ONNX Runtime on the CPU instead"
    )
    return Artifact(bundle, _CPU_FALLBACK, None, (note,))


def _max_batch(bundle: Bundle) -> int | None:
    try:
        report = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))
        return int(report["engine"]["profile"]["max"][0])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_onnx(path: Path) -> Artifact:
    """An exported ONNX in the normal form that runtimes accept, with TAO's preprocessing.

    The form is kept by the hash of the file, so that only the first command checks the network. The cache holds the
    networks that were used last.
    """
    key = hashlib.sha256(f"{_CACHE_VERSION} {file_sha256(path)} {path.stem}".encode()).hexdigest()
    for root in (cache_folder("onnx", CACHE_VARIABLE), Path(_scratch().name)):
        folder = root / key
        with suppress(*_UNUSABLE):
            return _read_normal_form(path, folder)
        try:
            shutil.rmtree(folder, ignore_errors=True)  # some of its files were lost or changed
            root.mkdir(parents=True, exist_ok=True)
            _write_normal_form(path, folder)
            _prune(root)
            return _read_normal_form(path, folder)
        except OSError:  # the cache cannot be written, or another process has just written the folder
            with suppress(*_UNUSABLE):
                return _read_normal_form(path, folder)
    raise InvalidInputError(
        f"{path.name} cannot be prepared: neither the cache nor the temporary folder can be written"
    )


def _read_normal_form(path: Path, folder: Path) -> Artifact:
    kept = json.loads((folder / "batch.json").read_text("utf-8"))
    bundle = Bundle.load(folder)
    if bundle.sha256() != kept["sha256"]:
        raise InvalidInputError(f"{bundle.model_path} was changed after it was written")
    with suppress(OSError):  # a cache that belongs to another user
        os.utime(folder)
    note = exporter_note(path)
    return Artifact(bundle, None, kept["batch"], (note,) if note else ())


def _write_normal_form(path: Path, folder: Path) -> None:
    # The description's notes matter to builds only; a size or batch that does not fit raises an error of its own.
    description = describe(path, "ocdnet")
    with draft_folder(folder.parent, f".{folder.name}-") as draft:
        onnx.save(lower_deformable(description.model, "standard"), str(draft / "model.onnx"))
        spec = replace(description.spec, model="model.onnx")
        (draft / "detector.json").write_text(spec.to_json(), "utf-8")
        Bundle(spec, draft / "model.onnx").write_manifest()
        kept = {"batch": description.batch, "sha256": file_sha256(draft / "model.onnx")}
        (draft / "batch.json").write_text(json.dumps(kept), "utf-8")
        install_folder(draft, folder)


def _prune(root: Path) -> None:
    """Remove the networks of the cache that were not used for long, beyond those that it keeps."""
    used = sorted(((entry.stat().st_mtime, entry.path) for entry in os.scandir(root) if entry.is_dir()), reverse=True)
    for when, path in used[_KEPT:]:
        if time.time() - when > _IN_USE_S:
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """Temporary folder of this process, removed at exit."""
    return tempfile.TemporaryDirectory(prefix="ocdnet-")


def _is_onnx(path: Path) -> bool:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf raises exceptions of its own
        return False
    return bool(model.graph.output)
