# SPDX-License-Identifier: Apache-2.0
"""Metadata of the actions that are executed here, for agents and services that run TAO's skills."""

from typing import Any

_CALIBRATION = "gen_trt_engine.tensorrt.calibration"
_DATA_PATH = "dataset.validate_dataset.data_path"
# Keys that name inputs and outputs of an action besides its result folder: kind of what they name.
_INPUTS = {
    "gen_trt_engine": {"gen_trt_engine.onnx_file": "file", f"{_CALIBRATION}.cal_image_dir": "folder"},
    "evaluate": {"evaluate.trt_engine": "file", _DATA_PATH: "folder"},
    "inference": {"inference.trt_engine": "file", "inference.input_folder": "folder"},
}
_OUTPUTS = {"gen_trt_engine": {"gen_trt_engine.trt_engine": "file"}}
# Archive of a data set that a key gets, by TAO's layout of data sets.
_DATA = {
    "gen_trt_engine": {f"{_CALIBRATION}.cal_image_dir": ("calibration_dataset", "images.tar.gz", True)},
    "evaluate": {_DATA_PATH: ("eval_dataset", "test.tar.gz", True)},
    "inference": {"inference.input_folder": ("inference_dataset", "test/img.tar.gz", False)},
}
# Keys that TAO's functions fill; `ocdnet resolve` does the same.
_FILLED = {
    "gen_trt_engine": {
        "gen_trt_engine.results_dir": "output_dir",
        "gen_trt_engine.onnx_file": "parent_model",
        "gen_trt_engine.trt_engine": "create_engine_file",
        f"{_CALIBRATION}.cal_cache_file": "create_cal_cache",
    },
    "evaluate": {"evaluate.trt_engine": "parent_model"},
    "inference": {"inference.trt_engine": "parent_model"},
}
_SHORTHANDS = {
    "trt_data_type": "gen_trt_engine.tensorrt.data_type",
    "trt_engine": "gen_trt_engine.trt_engine",
    "batch_size": "dataset.validate_dataset.loader.batch_size",
    "cal_batch_size": f"{_CALIBRATION}.cal_batch_size",
    "cal_batches": f"{_CALIBRATION}.cal_batches",
    **{f"trt_{name}_batch_size": f"gen_trt_engine.tensorrt.{name}_batch_size" for name in ("min", "opt", "max")},
    **{f"engine_{side}": f"gen_trt_engine.{side}" for side in ("width", "height")},
    **{f"inference_{side}": f"inference.{side}" for side in ("width", "height")},
}


def skill_info(template: str) -> dict[str, Any]:
    """Return the content of `skill_info.yaml`.

    Args:
        template: Name of an action's spec template, with `{}` for the action.
    """
    return {
        "name": "ocdnet-deploy",
        "type": "model",
        "network_arch": "ocdnet",
        "description": "Build, evaluate and run OCDNet engines with ocdserve.",
        "data_format": "default",
        "actions": {
            action: {
                "command": f"ocdnet {action} -e {{config_path}}",
                "config_format": "yaml",
                "mode": "config",
                "inputs": {key: {"type": kind} for key, kind in inputs.items()},
                "outputs": {
                    key: {"type": kind} for key, kind in {"results_dir": "folder", **_OUTPUTS.get(action, {})}.items()
                },
                "upload_excludes": ["inputs/"],
            }
            for action, inputs in _INPUTS.items()
        },
        "data_sources": {
            action: {
                key: {"source": source, "path": path, "runtime": "extracted_folder", **({"list": True} if many else {})}
                for key, (source, path, many) in data.items()
            }
            for action, data in _DATA.items()
        },
        "spec_params": {
            action: {"encryption_key": "key", "results_dir": "output_dir", **filled}
            for action, filled in _FILLED.items()
        },
        "spec_shorthand_keys": _SHORTHANDS,
        "spec_templates": {action: template.format(action) for action in _INPUTS},
    }
