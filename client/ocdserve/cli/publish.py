# SPDX-License-Identifier: Apache-2.0
"""Write a complete Triton model repository for a detector, to serve with any Triton.

The Python that this Triton's stubs run needs `pip install 'ocdserve[models]'`, on a GPU `'ocdserve[gpu]'`. Where its
image may not change, --environment gives the repository these packages; `scripts/pack_environment.sh` makes the file.
"""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.cli.completion import completes
from ocdserve.cli.tuning import (
    add_bundle_argument,
    add_recogniser_argument,
    add_repository_arguments,
    limits_of,
    tuning_of,
    usage_errors,
)
from ocdserve.contract import UsageError

if TYPE_CHECKING:
    from ocdserve.backend.publish.environment import PackedEnvironment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from ocdserve.backend.serve.process.runtime_dir import CONTAINER_IMAGE

    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="folder to write")
    add_bundle_argument(parser, "publish")
    add_recogniser_argument(parser, "recogniser to publish too, for models that read text")
    network = parser.add_argument(
        "--network",
        metavar="NAME",
        default="python",
        help="python (default), or tensorrt_plan: Triton's TensorRT backend executes the bundle's engine",
    )
    completes(network, ("python", "tensorrt_plan"))
    parser.add_argument(
        "--environment",
        metavar="FILE.tar.gz",
        type=Path,
        help="packed environment with the models' packages, for a Triton whose Python lacks them",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="then load the repository in a second Triton, with a cleared environment, and detect one picture",
    )
    parser.add_argument("--tritonserver", type=Path, metavar="PATH", help="with --verify: this installation's binary")
    parser.add_argument(
        "--image",
        metavar="NAME",
        default=CONTAINER_IMAGE,
        help="image of Triton that the printed command names (default: %(default)s)",
    )
    add_repository_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Publish, and print how to serve the repository."""
    from ocdserve.backend.publish.environment import PackedEnvironment
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.backend.serve.options import ServeOptions
    from ocdserve.backend.serve.process.runtime_dir import container_command
    from ocdserve.contract import MODELS

    if args.tritonserver and not args.verify:
        raise UsageError("--tritonserver names the Triton that verifies; add --verify")
    with usage_errors():
        environment = PackedEnvironment.read(args.environment) if args.environment else None
        options = PublishOptions.tuned(
            args.repository,
            args.bundle,
            tuning_of(args),
            network=args.network,
            gpu=args.gpu,
            decoder=args.decoder or "cpu",
            require_manifest=args.require_manifest,
            limits=limits_of(args),
            environment=environment,
            recogniser=args.recogniser,
        )
    repository = publish(options)
    print(f"wrote {', '.join(name for name in MODELS if (repository / name).is_dir())} to {repository}")
    print(f"serve it here:     ocdserve serve --repository {shlex.quote(str(repository))}")
    print(f"by another Triton: {container_command(ServeOptions(repository), args.image)}")
    if environment:
        _describe(environment)
    if args.verify:
        _verify(repository, environment, args.tritonserver)
    return 0


def _describe(environment: "PackedEnvironment") -> None:
    megabytes = environment.unpacked_bytes // 1_000_000
    place = f" at {environment.interpreter}" if environment.interpreter else ""
    print(f"environment:       needs Python {environment.python}{place} and {megabytes} MB in /tmp, which a Triton")
    print("                   that is killed leaves there; in Kubernetes start it by")
    print("                   sh -c 'rm -rf /tmp/python_env_*; exec tritonserver ...'")


def _verify(repository: Path, environment: "PackedEnvironment | None", tritonserver: Path | None) -> None:
    from ocdserve.backend.verification import verify

    for model, quads in verify(repository, environment, tritonserver).items():
        boxes = "; ".join(" ".join(f"{number:.0f}" for number in quad) for quad in quads)
        print(f"verified:          {model} answers: {boxes or 'no text in the test picture'}")
