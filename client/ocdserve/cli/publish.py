# SPDX-License-Identifier: Apache-2.0
"""Write a complete Triton model repository for a detector, to serve with any Triton.

The Python that this Triton's stubs run needs `pip install 'ocdserve[server]'`, on a GPU `'ocdserve[gpu]'`.
"""

import argparse
from pathlib import Path

from ocdserve.cli.completion import completes
from ocdserve.cli.tuning import add_bundle_argument, add_repository_arguments, limits_of, tuning_of, usage_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="folder to write")
    add_bundle_argument(parser, "publish")
    network = parser.add_argument(
        "--network",
        metavar="NAME",
        default="python",
        help="python (default), or tensorrt_plan: Triton's TensorRT backend executes the bundle's engine",
    )
    completes(network, ("python", "tensorrt_plan"))
    add_repository_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Publish, and print how to serve the repository."""
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.contract import MODELS

    with usage_errors():
        options = PublishOptions.tuned(
            args.repository,
            args.bundle,
            tuning_of(args),
            network=args.network,
            gpu=args.gpu,
            decoder=args.decoder or "cpu",
            require_manifest=args.require_manifest,
            limits=limits_of(args),
        )
    repository = publish(options)
    print(f"wrote {', '.join(name for name in MODELS if (repository / name).is_dir())} to {repository}")
    print(f"serve it here:        ocdserve serve --repository {repository}")
    pool = " --cuda-memory-pool-byte-size=0:1073741824" if args.gpu else ""
    print(f"by another Triton:    tritonserver --model-repository={repository.resolve()}{pool}")
    print(f"whose Python needs:   pip install 'ocdserve[{'gpu' if args.gpu else 'server'}]'")
    return 0
