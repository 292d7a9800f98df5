# SPDX-License-Identifier: Apache-2.0
"""Ask a server with NVIDIA's tritonclient alone: bare_tritonclient.py IMAGE [HOST:GRPC_PORT]"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main(image: str, address: str = "127.0.0.1:8001") -> None:
    tensor = triton.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[Path(image).read_bytes()]], dtype=object))
    with triton.InferenceServerClient(address) as client:
        result = client.infer("ocdnet", [tensor], parameters={"box_thresh": 0.6})
    count = result.as_numpy("COUNT")[0, 0]
    for quad, score in zip(result.as_numpy("QUADS")[0, :count], result.as_numpy("SCORES")[0, :count], strict=True):
        print(f"{score:.2f}", quad.round().astype(int).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
