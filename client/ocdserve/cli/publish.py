# SPDX-License-Identifier: Apache-2.0
"""Write a complete Triton model repository for a detector, to serve with any Triton.

The Python that this Triton's stubs run needs `pip install 'ocdserve[server]'`, on a GPU `'ocdserve[gpu]'`.
"""

import argparse
from pathlib import Path

from ocdserve.cli.tuning import add_tuning_arguments, tuning_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--bundle", metavar="DIR", type=Path, help="detector to publish (a folder, or the built-in default or fast)"
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        default="python",
        help="python (default), or tensorrt_plan: Triton's TensorRT backend executes the bundle's engine",
    )
    parser.add_argument("--gpu", action="store_true", help="all stages on the server's GPUs, an instance on each")
    parser.add_argument(
        "--decoder", metavar="NAME", default="cpu", help="with --gpu: cpu (default), gpu (nvImageCodec) or auto"
    )
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        help="what runs the network, such as openvino; with --gpu such as tensorrt (default: the bundle's, else the "
        "server's best)",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="cores for the network (default: all of the server)")
    parser.add_argument(
        "--streams", metavar="N", type=int, help="images (with --gpu: batches) in the network at a time (default: 1)"
    )
    add_tuning_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Publish, and print how to serve the repository."""
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.contract import MODELS

    options = PublishOptions.tuned(
        args.repository, args.bundle, tuning_of(args), network=args.network, gpu=args.gpu, decoder=args.decoder
    )
    repository = publish(options)
    print(f"wrote {', '.join(name for name in MODELS if (repository / name).is_dir())} to {repository}")
    print(f"serve it here:        ocdserve serve --repository {repository}")
    pool = " --cuda-memory-pool-byte-size=0:1073741824" if args.gpu else ""
    print(f"by another Triton:    tritonserver --model-repository={repository.resolve()}{pool}")
    print(f"whose Python needs:   pip install 'ocdserve[{'gpu' if args.gpu else 'server'}]'")
    return 0
