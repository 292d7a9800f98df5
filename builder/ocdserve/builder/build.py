# SPDX-License-Identifier: Apache-2.0
"""The build recipe: check the network, run it once, write the bundle in one step."""

import importlib.metadata
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ocdserve.backend import PRESETS, Bundle
from ocdserve.backend.network import RuntimeOptions, load_network
from ocdserve.contract import InvalidInputError

_TRIAL_SIZE = (720, 1280)


@dataclass(frozen=True)
class BuildConfig:
    """What to build.

    Attributes:
        onnx: Exported DB network, float32 N x 3 x H x W in, N x 1 x H x W probability out.
        output: Folder of the bundle; it must not exist yet.
        preset: Normalisation, resize policy and thresholds: one of `ocdserve.backend.PRESETS`.
        name: Name of the detector; None takes the ONNX file's.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    onnx: Path
    output: Path
    preset: str = "ocdnet"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InvalidInputError(f"preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        if not self.onnx.is_file():
            raise InvalidInputError(f"onnx: there is no file {str(self.onnx)!r}")
        if self.output.exists():
            raise InvalidInputError(f"output: {str(self.output)!r} exists; name a new folder or remove it")


def build(config: BuildConfig) -> Bundle:
    """Build a bundle; a build that fails or is interrupted leaves nothing at `config.output`.

    Raises:
        InvalidInputError: The network is not one that can be served; the message says what was expected.
    """
    spec = replace(PRESETS[config.preset], name=config.name or config.onnx.stem)
    source = Bundle(spec, config.onnx)
    _trial_run(source)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{config.output.name}-", dir=config.output.parent))
    try:
        source.save(draft)
        (draft / "report.json").write_text(json.dumps(_report(config, source), indent=2) + "\n", "utf-8")
        draft.chmod(0o755)
        os.rename(draft, config.output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Bundle.load(config.output)


def _trial_run(bundle: Bundle) -> None:
    """One image through the network, so that a wrong output is found here and not by the first request."""
    network = load_network(bundle, RuntimeOptions(map_type="float32"))
    size, _ = bundle.spec.resize.sizes(*_TRIAL_SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    try:
        (probability,) = network.infer([pixels])
    except Exception as error:  # each runtime has exceptions of its own
        raise InvalidInputError(
            f"{bundle.model_path.name} cannot be run on {size[1]} x {size[0]} pixels, so it is no DB network of this "
            f"preset: {' '.join(str(error).split())[:300]}"
        ) from error
    if probability.shape != size:
        raise InvalidInputError(
            f"{bundle.model_path.name}: the output must have the input's height and width {size}; "
            f"got {probability.shape}. A network whose map is smaller is not supported."
        )
    low, high = float(probability.min()), float(probability.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InvalidInputError(
            f"{bundle.model_path.name}: the output must be probabilities from 0 to 1; got {low:.3g} to {high:.3g}. "
            "Export the network with its sigmoid."
        )


def _report(config: BuildConfig, source: Bundle) -> dict[str, object]:
    packages = ("ocdserve", "onnx", "onnxruntime", "openvino")
    return {
        "schema_version": 1,
        "onnx": config.onnx.name,
        "onnx_sha256": source.sha256(),
        "preset": config.preset,
        "precision": "fp32",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
