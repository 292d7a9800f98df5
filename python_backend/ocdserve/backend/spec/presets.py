# SPDX-License-Identifier: Apache-2.0
"""Built-in specifications of detectors and recognisers, by name."""

from ocdserve.backend.spec.detector_spec import DetectorSpec, NetworkSpec
from ocdserve.backend.spec.params import TAO_BOX_THRESH, PostprocessParams
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.spec.resize import ResizePolicy

# ppocr: PaddleOCR's normalisation (x / 255 - 0.5) / 0.5 on BGR, and its thresholds; resize chosen on the evaluation
#   sets of this project (see docs/decisions/0007).
# ppocr-fast: the same at less than half the pixels, PaddleOCR's limit of 960.
# ocdnet: NVIDIA TAO's: mean by channel index in BGR, division by 255, a plain stretch to 1280 x 736.
# dbnet: the ImageNet statistics that most DBNet trainings use, RGB.
PRESETS: dict[str, DetectorSpec] = {
    "ppocr": DetectorSpec(
        name="ppocr",
        resize=ResizePolicy(kind="short_side", side=736, largest_side=1600, bucket=32),
        postprocess=PostprocessParams(box_thresh=0.6, unclip_ratio=1.5),
    ),
    "ppocr-fast": DetectorSpec(
        name="ppocr-fast",
        resize=ResizePolicy(kind="short_side", side=480, largest_side=960, bucket=32),
        postprocess=PostprocessParams(box_thresh=0.6, unclip_ratio=1.5),
    ),
    "ocdnet": DetectorSpec(
        name="ocdnet",
        network=NetworkSpec(mean=(122.67891434, 116.66876762, 104.00698793), std=(255.0, 255.0, 255.0)),
        resize=ResizePolicy(kind="fixed", width=1280, height=736),
        postprocess=PostprocessParams(box_thresh=TAO_BOX_THRESH),
    ),
    "dbnet": DetectorSpec(
        name="dbnet",
        network=NetworkSpec(color="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        resize=ResizePolicy(kind="short_side", side=736, largest_side=1600, bucket=64),
        postprocess=PostprocessParams(box_thresh=0.5),
    ),
}

# ppocr: PaddleOCR's, of version 3 and later: 48 pixels high, normalised as for detection. A bundle's characters come
#   from its network's metadata.
# ppocr-fast: the same network in bfloat16 where the processor has it.
RECOGNISER_PRESETS: dict[str, RecogniserSpec] = {
    "ppocr": RecogniserSpec(name="ppocr"),
    "ppocr-fast": RecogniserSpec(name="ppocr-fast", precision="bf16"),
}
