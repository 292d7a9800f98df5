# SPDX-License-Identifier: Apache-2.0
"""Metadata of TAO's actions, for agents and services that run TAO's skills: `skill_info.yaml` and its like.

There are two skills, as NVIDIA publishes them: training, and deployment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CALIBRATION = "gen_trt_engine.tensorrt.calibration"
_TRAINED = "dataset.train_dataset.data_path"
_VALIDATED = "dataset.validate_dataset.data_path"
_SIZES = {f"inference_{side}": f"inference.{side}" for side in ("width", "height")}
# Archive of a data set in TAO's layout of data sets, and whether a key gets a list of them.
_TRAIN_DATA = {_TRAINED: ("train_datasets", "train.tar.gz", True)}
_EVAL_DATA = {_VALIDATED: ("eval_dataset", "test.tar.gz", True)}
_INFERENCE_DATA = {"inference.input_folder": ("inference_dataset", "test/img.tar.gz", False)}


@dataclass(frozen=True)
class _Action:
    """One action of a skill.

    Attributes:
        inputs: Keys that name its inputs, and the kind of what they name; with a question mark where optional.
        data: Archive of a data set that a key gets: its source, path, and whether it is one of a list.
        filled: Keys that TAO's functions fill (`ocdnet resolve` does the same), besides those of every action.
        outputs: Keys that name its outputs, besides the result folder.
        command: What runs it, if not the action of this name.
    """

    inputs: Mapping[str, str]
    data: Mapping[str, tuple[str, str, bool]]
    filled: Mapping[str, str]
    outputs: Mapping[str, str]
    command: str = ""


@dataclass(frozen=True)
class _Skill:
    """A skill: its head, its actions, and short names of keys."""

    head: Mapping[str, Any]
    actions: Mapping[str, _Action]
    shorthands: Mapping[str, str]


_DEPLOY = _Skill(
    {
        "name": "ocdnet-deploy",
        "type": "model",
        "network_arch": "ocdnet",
        "description": "Build, evaluate and run OCDNet engines with ocdserve.",
        "data_format": "default",
    },
    {
        "gen_trt_engine": _Action(
            {"gen_trt_engine.onnx_file": "file", f"{_CALIBRATION}.cal_image_dir": "folder"},
            {f"{_CALIBRATION}.cal_image_dir": ("calibration_dataset", "images.tar.gz", True)},
            {
                "gen_trt_engine.results_dir": "output_dir",
                "gen_trt_engine.onnx_file": "parent_model",
                "gen_trt_engine.trt_engine": "create_engine_file",
                f"{_CALIBRATION}.cal_cache_file": "create_cal_cache",
            },
            {"gen_trt_engine.trt_engine": "file"},
        ),
        "evaluate": _Action(
            {"evaluate.trt_engine": "file", _VALIDATED: "folder"},
            _EVAL_DATA,
            {"evaluate.trt_engine": "parent_model"},
            {},
        ),
        "inference": _Action(
            {"inference.trt_engine": "file", "inference.input_folder": "folder"},
            _INFERENCE_DATA,
            {"inference.trt_engine": "parent_model"},
            {},
        ),
    },
    {
        "trt_data_type": "gen_trt_engine.tensorrt.data_type",
        "trt_engine": "gen_trt_engine.trt_engine",
        "batch_size": "dataset.validate_dataset.loader.batch_size",
        "cal_batch_size": f"{_CALIBRATION}.cal_batch_size",
        "cal_batches": f"{_CALIBRATION}.cal_batches",
        **{f"trt_{name}_batch_size": f"gen_trt_engine.tensorrt.{name}_batch_size" for name in ("min", "opt", "max")},
        **{f"engine_{side}": f"gen_trt_engine.{side}" for side in ("width", "height")},
        **_SIZES,
    },
)
_TRAIN = _Skill(
    {
        "name": "ocdnet-train",
        "type": "model",
        "network_arch": "ocdnet",
        "description": "Train, prune, quantise and export OCDNet with ocdserve.",
        "automl_enabled": True,
        "container_image": "tao_toolkit.pyt",
        "data_format": "default",
        "gpu_spec_key": "train.num_gpus",
    },
    {
        "train": _Action(
            {
                _TRAINED: "folder",
                _VALIDATED: "folder",
                "model.pretrained_model_path": "file?",
                "train.resume_training_checkpoint_path": "file?",
            },
            _TRAIN_DATA | _EVAL_DATA,
            {
                "model.pretrained_model_path": "ptm_if_no_resume_model",
                "train.resume_training_checkpoint_path": "resume_model",
            },
            {},
        ),
        "quantize": _Action(
            {
                _TRAINED: "folder",
                _VALIDATED: "folder",
                "dataset.quant_calibration_dataset.images_dir": "folder",
                "quantize.model_path": "file",
            },
            {
                **_TRAIN_DATA,
                **_EVAL_DATA,
                "dataset.quant_calibration_dataset.images_dir": ("train_datasets", "train/img.tar.gz", False),
            },
            {"quantize.model_path": "parent_model"},
            {},
        ),
        "evaluate": _Action(
            {_VALIDATED: "folder", "evaluate.checkpoint": "file"},
            _EVAL_DATA,
            {"evaluate.checkpoint": "parent_model"},
            {},
        ),
        "export": _Action(
            {"export.checkpoint": "file"},
            {},
            {"export.checkpoint": "parent_model", "export.onnx_file": "create_onnx_file"},
            {"export.onnx_file": "file"},
        ),
        "prune": _Action(
            {_VALIDATED: "folder", "prune.checkpoint": "file"},
            _EVAL_DATA,
            {"prune.checkpoint": "parent_model"},
            {},
        ),
        "retrain": _Action(
            {_TRAINED: "folder", _VALIDATED: "folder", "model.pruned_graph_path": "file"},
            _TRAIN_DATA | _EVAL_DATA,
            {"model.pruned_graph_path": "parent_model"},
            {},
            command="train",
        ),
        "inference": _Action(
            {"inference.input_folder": "folder", "inference.checkpoint": "file"},
            _INFERENCE_DATA,
            {"inference.checkpoint": "parent_model"},
            {},
        ),
    },
    {
        "num_epochs": "train.num_epochs",
        "batch_size": "dataset.train_dataset.loader.batch_size",
        "val_batch_size": "dataset.validate_dataset.loader.batch_size",
        "learning_rate": "train.optimizer.args.lr",
        "warmup_epoch": "train.lr_scheduler.args.warmup_epoch",
        "resume_checkpoint": "train.resume_training_checkpoint_path",
        "pretrained_model": "model.pretrained_model_path",
        "load_pruned_graph": "model.load_pruned_graph",
        "pruned_graph_path": "model.pruned_graph_path",
        **_SIZES,
        **{f"export_{side}": f"export.{side}" for side in ("width", "height")},
        "quant_backend": "quantize.backend",
        "quant_model_path": "quantize.model_path",
    },
)


def skill_infos(template: str) -> dict[str, dict[str, Any]]:
    """Return the contents of `skill_info.yaml`, of training, and of `ocdnet-deploy.skill_info.yaml`, by file name.

    Args:
        template: Name of an action's spec template, with `{}` for the action.
    """
    return {
        "skill_info.yaml": _content(_TRAIN, template),
        "ocdnet-deploy.skill_info.yaml": _content(_DEPLOY, template),
    }


def _content(skill: _Skill, template: str) -> dict[str, Any]:
    return {
        **skill.head,
        "actions": {
            name: {
                "command": f"ocdnet {action.command or name} -e {{config_path}}",
                "config_format": "yaml",
                "mode": "config",
                "inputs": {
                    key: {"type": kind.rstrip("?"), **({"optional": True} if kind.endswith("?") else {})}
                    for key, kind in action.inputs.items()
                },
                "outputs": {key: {"type": kind} for key, kind in {"results_dir": "folder", **action.outputs}.items()},
                "upload_excludes": ["inputs/"],
            }
            for name, action in skill.actions.items()
        },
        "data_sources": {
            name: {
                key: {"source": source, "path": path, "runtime": "extracted_folder", **({"list": True} if many else {})}
                for key, (source, path, many) in action.data.items()
            }
            for name, action in skill.actions.items()
            if action.data
        },
        "spec_params": {
            name: {"encryption_key": "key", "results_dir": "output_dir", **action.filled}
            for name, action in skill.actions.items()
        },
        "spec_shorthand_keys": dict(skill.shorthands),
        "spec_templates": {name: template.format(name) for name in skill.actions},
    }
