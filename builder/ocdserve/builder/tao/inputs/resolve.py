# SPDX-License-Identifier: Apache-2.0
"""Pass a parent's artefacts to the next action: which file of a result folder goes into which key.

The rules are those that NVIDIA publishes for OCDNet: evaluate, inference, export and prune take the best checkpoint;
resumed training and quantize take a full epoch checkpoint; retrain takes the pruned network, gen_trt_engine the ONNX,
evaluate and inference the engine. The latest checkpoint is taken only on request.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ocdserve.contract import InvalidInputError

# Names of artefacts.
_ENGINE = r".+\.(engine|plan|trt)"
_ONNX = r".+\.onnx"
_CHECKPOINT = r".+\.(pth|tlt)"
_EPOCH = r"model_epoch_(\d+)_step_(\d+)\.pth"
_PRUNED = r"pruned_(\d*\.?\d+)\.(pth|tlt)"

RESOLVABLE = ("train", "retrain", "evaluate", "inference", "export", "prune", "quantize", "gen_trt_engine")


@dataclass(frozen=True)
class Request:
    """Arguments of `resolve`.

    Attributes:
        action: The next action.
        parent: Result folder of the previous action; optional for train.
        output: Result folder of the next action; None: next to the parent, named after the action.
        checkpoint: `best`, `latest`, `epoch:N` (N as in the file's name), or a file's name.
        pretrained: Initial weights of train, if there is nothing to resume from.

    Raises:
        InvalidInputError: The action is unknown, or a folder or `checkpoint` is invalid.
    """

    action: str
    parent: Path | None
    output: Path | None = None
    checkpoint: str = "best"
    pretrained: Path | None = None

    def __post_init__(self) -> None:
        if self.action not in RESOLVABLE:
            raise InvalidInputError(f"there is no action {self.action!r} to resolve; known are {', '.join(RESOLVABLE)}")
        if self.parent is None and (self.action != "train" or self.output is None):
            raise InvalidInputError(f"{self.action} needs --parent, the result folder of the action before")
        if self.parent is not None and not self.parent.is_dir():
            what = "is not a folder" if self.parent.exists() else "does not exist"
            raise InvalidInputError(f"the parent's result folder {str(self.parent)!r} {what}")
        if self.checkpoint.startswith("epoch:") and not self.checkpoint[6:].isdigit():
            raise InvalidInputError(
                f"checkpoint must be best, latest, epoch:N or a file's name; got {self.checkpoint!r}"
            )

    @property
    def output_dir(self) -> Path:
        """Result folder of the next action."""
        if self.output is not None:
            return self.output
        assert self.parent is not None  # checked above
        return self.parent.parent / self.action


@dataclass(frozen=True)
class Resolved:
    """Keys of the next action's spec.

    Attributes:
        values: Value by dotted key.
        notes: Choices that are not obvious, a sentence each.
    """

    values: dict[str, str | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        """Format the values as `key=value` for the command line."""
        return [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.values.items()
        ]


def resolve(request: Request) -> Resolved:
    """Find the values of the keys that the next action takes from its parent.

    Raises:
        InvalidInputError: The parent has no artefact of the required kind, or several and none is preferred.
    """
    values: dict[str, str | bool] = {"results_dir": str(request.output_dir)}
    notes: list[str] = []
    if request.action == "train":
        _resolve_train(request, values, notes)
        return Resolved(values, tuple(notes))
    assert request.parent is not None  # checked by the request
    if request.action == "gen_trt_engine":
        values["gen_trt_engine.onnx_file"] = str(_onnx(request.parent, request.checkpoint))
        values["gen_trt_engine.trt_engine"] = str(request.output_dir / "model.engine")
        values["gen_trt_engine.tensorrt.calibration.cal_cache_file"] = str(request.output_dir / "cal.bin")
    elif request.action == "retrain":
        values["model.load_pruned_graph"] = True
        values["model.pruned_graph_path"] = str(_pruned(request.parent, request.checkpoint))
    elif request.action == "quantize":
        values["quantize.model_path"] = str(_for_quantize(request.parent, request.checkpoint, notes))
    else:
        _resolve_model(request, request.parent, values, notes)
    return Resolved(values, tuple(notes))


def _resolve_train(request: Request, values: dict[str, str | bool], notes: list[str]) -> None:
    epochs = _epochs(request.output_dir) if request.output_dir.is_dir() else []
    if epochs:
        values["train.resume_training_checkpoint_path"] = str(
            _epoch_file(epochs, request.checkpoint, request.output_dir)
        )
        if request.pretrained:
            notes.append("the pretrained weights are left out: there is a checkpoint to resume from")
    elif request.pretrained is not None:
        values["model.pretrained_model_path"] = str(request.pretrained)


def _resolve_model(request: Request, parent: Path, values: dict[str, str | bool], notes: list[str]) -> None:
    """For evaluate, inference, export and prune: an engine or ONNX if the action takes one, else a checkpoint.

    An ONNX beside the checkpoints of a training, where export writes it by default, is taken by its name only.
    """
    action = request.action
    if action in ("evaluate", "inference"):
        engines = _files(parent, _ENGINE)
        networks = engines or _files(parent, _ONNX)
        is_named = Path(request.checkpoint).name in {path.name for path in networks}
        if networks and (is_named or networks[0].parent not in {path.parent for path in _files(parent, _CHECKPOINT)}):
            values[f"{action}.trt_engine"] = str(
                _only(networks, request.checkpoint, "engine" if engines else "ONNX file")
            )
            return
    values[f"{action}.checkpoint"] = str(_checkpoint(parent, request.checkpoint))
    pruned = _files(parent, r"pruned_model\.pth")
    if pruned:
        values["model.load_pruned_graph"] = True
        values["model.pruned_graph_path"] = str(pruned[0])
        notes.append("the parent was trained from a pruned network, whose graph is passed on")
    if action == "export":
        values["export.onnx_file"] = str(request.output_dir / "model.onnx")


def _checkpoint(parent: Path, wanted: str) -> Path:
    if wanted == "best":
        best = _files(parent, r"model_best\.pth")
        if not best:
            raise InvalidInputError(
                f"{parent} holds no model_best.pth; it holds {_names(_files(parent, _CHECKPOINT))}. Ask for another "
                "with --checkpoint latest, epoch:N or a file's name."
            )
        return best[0]
    if wanted != "latest" and not wanted.startswith("epoch:"):
        return _named(_files(parent, _CHECKPOINT), wanted, parent)
    return _epoch_file(_epochs(parent), wanted, parent)


def _for_quantize(parent: Path, wanted: str, notes: list[str]) -> Path:
    """A full epoch checkpoint, never model_best.pth, which has only weights; or the ONNX that was asked for."""
    if wanted.endswith(".onnx"):
        return _named(_files(parent, _ONNX), wanted, parent)
    epochs = _epochs(parent)
    if wanted != "best":
        if wanted == "model_best.pth":
            raise InvalidInputError(
                "quantize cannot read model_best.pth; take the epoch checkpoint: --checkpoint epoch:N"
            )
        return _epoch_file(epochs, wanted, parent)
    number = _best_epoch(parent)
    if number is not None and any(epoch == number for epoch, _, _ in epochs):
        return _epoch_file(epochs, f"epoch:{number}", parent)
    found = _epoch_file(epochs, "latest", parent)
    if len(epochs) > 1:
        notes.append(f"no status.json names the best epoch of {parent}; the latest was taken, {found.name}")
    return found


def _best_epoch(parent: Path) -> int | None:
    """Epoch of the highest hmean in the parent's status; of equal ones the later, as in training."""
    best: tuple[float, int] | None = None
    for file in _files(parent, r"status\.json"):
        for line in file.read_text("utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                # Other lines repeat figures, or sum up the whole training.
                epoch, hmean = record["epoch"], float(record["kpi"]["hmean"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if isinstance(epoch, int) and (best is None or hmean >= best[0]):
                best = hmean, epoch
    return best and best[1]


def _epochs(folder: Path) -> list[tuple[int, int, Path]]:
    """Epoch checkpoints, sorted: (epoch, step, file)."""
    matches = ((re.fullmatch(_EPOCH, path.name), path) for path in _files(folder, _EPOCH))
    return sorted((int(match[1]), int(match[2]), path) for match, path in matches if match)


def _epoch_file(epochs: list[tuple[int, int, Path]], wanted: str, folder: Path) -> Path:
    if not epochs:
        raise InvalidInputError(
            f"{folder} holds no epoch checkpoint (model_epoch_<epoch>_step_<step>.pth); name the result folder of train"
        )
    if wanted in ("latest", "best"):
        return epochs[-1][2]
    if wanted.startswith("epoch:"):
        number = int(wanted[6:])
        matching = [path for epoch, _, path in epochs if epoch == number]
        if not matching:
            known = ", ".join(dict.fromkeys(str(epoch) for epoch, _, _ in epochs))
            raise InvalidInputError(f"{folder} holds no checkpoint of epoch {number}; it has {known}")
        return matching[-1]
    return _named([path for _, _, path in epochs], wanted, folder)


def _pruned(parent: Path, wanted: str) -> Path:
    found = _files(parent, _PRUNED)
    if wanted not in ("best", "latest"):
        return _named(found, wanted, parent)
    if not found:
        raise InvalidInputError(f"{parent} holds no pruned_<sparsity>.pth; name the result folder of prune")
    return _only(found, wanted, "pruned network")


def _onnx(parent: Path, wanted: str) -> Path:
    found = _files(parent, _ONNX)
    if not found:
        raise InvalidInputError(f"{parent} holds no .onnx file; name the result folder of export")
    preferred = [path for path in found if path.name == "model.onnx"]
    return _only(preferred or found, wanted, "ONNX file")


def _only(found: list[Path], wanted: str, what: str) -> Path:
    if wanted not in ("best", "latest"):
        return _named(found, wanted, found[0].parent)
    if len(found) > 1:
        raise InvalidInputError(f"there is more than one {what}: {_names(found)}. Name one with --checkpoint FILE.")
    return found[0]


def _named(found: list[Path], wanted: str, folder: Path) -> Path:
    for path in found:
        if path.name == Path(wanted).name:
            return path
    raise InvalidInputError(f"{folder} holds no suitable {wanted!r}; it holds {_names(found)}")


def _files(folder: Path, name: str) -> list[Path]:
    """Files with a matching name of the shallowest level that has any; without links, such as ocd_model_latest.pth."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not any(part.endswith(".bundle") for part in path.parts)
        and re.fullmatch(name, path.name)
    )
    depth = min((len(path.parts) for path in found), default=0)
    return [path for path in found if len(path.parts) == depth]


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths) or "nothing of the kind"
