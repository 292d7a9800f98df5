# SPDX-License-Identifier: Apache-2.0
"""A model with the contract of `ocdnet_fused` that costs next to nothing, to measure clients and transports.

Each answer identifies its image: the width is the number in the image's first four bytes (little-endian), the height is
the image's length in bytes.
"""

from pathlib import Path

ECHO = "echo"

_CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 8
dynamic_batching { }
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "QUADS" data_type: TYPE_FP32 dims: [ -1, 4, 2 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "SIZE" data_type: TYPE_INT32 dims: [ 2 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

_MODEL = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()[:, 0]
            count = len(images)
            sizes = [[len(image), int.from_bytes(image[:4], "little")] for image in images]
            tensors = (
                ("QUADS", np.zeros((count, 1, 4, 2), np.float32)),
                ("SCORES", np.full((count, 1), 0.5, np.float32)),
                ("COUNT", np.ones((count, 1), np.int32)),
                ("SIZE", np.array(sizes, np.int32)),
            )
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors]))
        if DELAY_S:
            time.sleep(DELAY_S)
        return responses
"""


def write_echo_repository(folder: Path, delay_s: float = 0.0) -> Path:
    """Write a model repository that holds the model `ECHO`.

    Args:
        folder: Where; created if it does not exist.
        delay_s: How long each execution sleeps, in seconds.

    Returns:
        The folder.
    """
    version = folder / ECHO / "1"
    version.mkdir(parents=True)
    (folder / ECHO / "config.pbtxt").write_text(_CONFIG.lstrip(), "ascii")
    # The compiler removes the branch of a delay of 0.
    (version / "model.py").write_text(_MODEL.lstrip().replace("DELAY_S", repr(delay_s)), "ascii")
    return folder


def echo_image(number: int, nbytes: int) -> bytes:
    """An image of `nbytes` bytes, at least four, whose answer has this number as its width."""
    return number.to_bytes(4, "little") + bytes(nbytes - 4)
