# SPDX-License-Identifier: Apache-2.0
"""Write a complete Triton model repository around a detector, for a Triton of your own.

The Python that this Triton's stubs run needs `pip install 'ocdserve[server]'`.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument("--bundle", metavar="DIR", type=Path, help="detector to publish (default: the built-in one)")
    parser.add_argument(
        "--network",
        metavar="NAME",
        default="python",
        help="python (default), or tensorrt_plan: Triton's TensorRT backend executes the bundle's engine",
    )
    parser.add_argument("--runtime", metavar="NAME", help="openvino or onnxruntime (default: the server's best)")
    parser.add_argument("--threads", metavar="N", type=int, help="cores for the network (default: all of the server)")
    parser.add_argument("--streams", metavar="N", type=int, default=1, help="images in the network at the same time")


def run(args: argparse.Namespace) -> int:
    """Publish and tell how to serve it."""
    from ocdserve.backend.repository import PublishOptions, publish
    from ocdserve.contract import MODELS

    repository = publish(
        PublishOptions(args.repository, args.bundle, args.runtime, args.threads, args.streams, args.network)
    )
    print(f"wrote {', '.join(name for name in MODELS if (repository / name).is_dir())} to {repository}")
    print(f"serve it here:        ocdserve serve --repository {repository}")
    print(f"by another Triton:    tritonserver --model-repository={repository.resolve()}")
    print("whose Python needs:   pip install 'ocdserve[server]'")
    return 0
