# SPDX-License-Identifier: Apache-2.0
"""Detect text in any number of images; a job that was interrupted continues when it is run again.

The sources are folders, patterns and files, of this machine or of storage (s3://bucket/scans), or lists with a name
per line (.txt). Of PDF and TIFF files each page is an image. --output is a folder, or a place in storage, with a
Parquet file per shard and a row per image; one that cannot be read has a row with its error. The first run writes the
list of inputs there; a shard is done when its file is there, and each input is in exactly one. The exit code is 1 if a
shard was given up; the next run tries it again.
"""

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.batch.detect import NOT_FETCHED
from ocdserve.batch.storage import Folder, is_remote
from ocdserve.cli import one_of, printable, whole_number
from ocdserve.cli.completion import completes
from ocdserve.cli.detect.detector import add_parameter_arguments, add_size_arguments, given_parameters
from ocdserve.cli.detect.reports import Progress
from ocdserve.cli.tuning import add_bundle_argument, add_runtime_argument, usage_errors
from ocdserve.contract import POSTPROCESS_PARAMETERS, InvalidInputError, UsageError, is_url

if TYPE_CHECKING:
    from ocdserve.batch.job import Shard
    from ocdserve.batch.work import Step, Work

ENGINES = ("local", "ray")
_SHARD_SIZE = 256
# Seconds between lines of progress in a log.
_LOG_S = 60.0
# Options of Ray alone, by their default values.
_OF_RAY = {"address": None, "workers": None, "gpus_per_worker": None, "stall_s": 600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="file, folder, pattern, URL of storage, or list of them (.txt)"
    )
    parser.add_argument(
        "--output",
        metavar="DEST",
        required=True,
        help="folder or URL of storage for the results; that of an interrupted job continues it",
    )
    engine = parser.add_argument(
        "--engine",
        metavar="NAME",
        type=one_of(ENGINES),
        default="local",
        help="local: this process (default); ray: actors, here or on a cluster",
    )
    completes(engine, ENGINES)
    add_bundle_argument(parser, "load")
    add_runtime_argument(parser, "the fastest")
    parser.add_argument("--gpu", action="store_true", help="all stages on a GPU")
    parser.add_argument(
        "--threads",
        metavar="N",
        type=whole_number(1),
        help="cores for the network (default: all; with Ray 1, the CPUs that a worker reserves)",
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=whole_number(1), default=2, help="images in progress at once (default: 2)"
    )
    add_size_arguments(parser)
    parser.add_argument(
        "--shard-size",
        metavar="N",
        type=whole_number(1),
        default=_SHARD_SIZE,
        help="inputs of a result file, the most that an interruption costs a worker (default: %(default)s)",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show a progress line (default: on a terminal; elsewhere one a minute is logged)",
    )
    _add_ray_arguments(parser)
    add_parameter_arguments(parser, POSTPROCESS_PARAMETERS)


def _add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument("--address", help="cluster: auto or ray://HOST:PORT (default: RAY_ADDRESS, else this machine)")
    ray.add_argument(
        "--workers", metavar="N", type=whole_number(1), help="actors (default: as many as the cluster holds)"
    )
    ray.add_argument(
        "--gpus-per-worker",
        metavar="X",
        type=float,
        help="with --gpu: GPUs that a worker reserves, such as 0.25 for four workers on one (default: 1)",
    )
    ray.add_argument(
        "--stall-s",
        metavar="N",
        type=float,
        default=_OF_RAY["stall_s"],
        help="seconds without progress that end the job with an error (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Detect; returns 1 if a shard was given up."""
    _check(args)
    from ocdserve.backend import Bundle
    from ocdserve.batch.detect import DetectBatch
    from ocdserve.batch.job import Job
    from ocdserve.batch.work import Work

    threads = args.threads or (1 if args.engine == "ray" else None)
    bundle = None if args.bundle is None else str(args.bundle)
    detect = DetectBatch(
        bundle=bundle,
        runtime=args.runtime,
        threads=threads,
        gpu=args.gpu,
        max_side=args.max_side,
        dpi=args.dpi,
        concurrency=args.concurrency,
        parameters=given_parameters(args),
        digest=Bundle.load(bundle).digest(),
    )
    provenance = {
        "version": version("ocdserve"),
        "bundle": bundle or "default",
        "digest": detect.digest,
        "sources": [_absolute(name) for name in args.sources],
        **{name: getattr(detect, name) for name in ("runtime", "gpu", "max_side", "dpi", "parameters")},
    }
    folder = Folder(_absolute(args.output))
    job, was_there = Job.open(folder, lambda: _inputs(args.sources), args.shard_size, provenance)
    left = job.left(folder)
    done = len(job.shards) - len(left)
    if was_there:
        print(f"continuing: {done} of {len(job.shards)} shards with {len(job.inputs)} inputs are already done")
    if not left:
        folder.tidy()
        return 0
    steps = _steps(args, Work(folder, detect, provenance), left)
    failed = _reported(steps, left, args)
    if not failed:
        folder.tidy()
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError if options contradict each other."""
    if args.engine != "ray":
        for name, default in _OF_RAY.items():
            if getattr(args, name) != default:
                raise UsageError(f"--{name.replace('_', '-')} is for --engine ray; add it, or leave this out")
    if args.gpus_per_worker is not None and not args.gpu:
        raise UsageError("--gpus-per-worker reserves GPUs, which only --gpu uses; add it, or leave this out")
    if args.gpu and args.threads:
        raise UsageError("--threads is for a network on the CPU; leave it out with --gpu")


def _inputs(arguments: Sequence[str]) -> Iterator[str]:
    """Names of the inputs, those of this machine as absolute paths.

    Raises:
        InvalidInputError: An argument names none.
    """
    from ocdserve.batch.sources import in_list, sources_of

    for argument in arguments:
        if is_url(argument):
            raise InvalidInputError(f"{argument!r}: {NOT_FETCHED}")
        if argument.lower().endswith(".txt"):
            yield from map(_absolute, in_list(argument))
            continue
        for source in sources_of([argument]):
            if source.problem is not None:
                raise InvalidInputError(source.problem)
            if source.name == argument and source.path and not source.path.exists():
                raise InvalidInputError(f"there is no file or folder {argument!r}; correct the name")
            yield _absolute(source.name)


def _absolute(name: str) -> str:
    return name.rstrip("/") if is_remote(name) or is_url(name) else str(Path(name).absolute())


def _steps(args: argparse.Namespace, work: "Work", left: "Sequence[Shard]") -> "Generator[Step, None, None]":
    if args.engine == "local":
        from ocdserve.batch.work import in_this_process

        return in_this_process(work, left)
    from ocdserve.batch.on_ray import RayOptions, on_ray

    gpus = (1.0 if args.gpus_per_worker is None else args.gpus_per_worker) if args.gpu else 0.0
    with usage_errors():
        options = RayOptions(args.address, args.workers, gpus, args.stall_s)
    return on_ray(work, left, options)


def _reported(steps: "Generator[Step, None, None]", left: "Sequence[Shard]", args: argparse.Namespace) -> int:
    """Show how far the job is, and what came of it; returns how many shards were given up."""
    total = sum(len(shard.inputs) for shard in left)
    progress = Progress(total, False if args.quiet else args.progress, None if args.quiet else _LOG_S)
    counts: dict[int, tuple[int, ...]] = {}
    failed = 0
    with closing(steps):
        for step in steps:
            before = counts.get(step.shard.index, (0,) * 4)
            counts[step.shard.index] = (step.inputs, step.images, step.boxes, step.errors)
            progress.step(step.inputs - before[0])
            if step.failure is not None:
                failed += 1
                progress.clear()
                print(f"ocdserve batch: {step.shard.file}: {printable(step.failure)}", file=sys.stderr, flush=True)
    progress.clear()
    inputs, images, boxes, errors = (sum(each) for each in zip((0,) * 4, *counts.values(), strict=True))
    seconds = progress.seconds()
    print(
        f"{inputs} inputs: {images} images, {boxes} boxes, {errors} errors in {seconds:.1f} s: "
        f"{images / max(seconds, 1e-9):.2f} images/s"
    )
    if failed:
        print(f"ocdserve batch: {failed} shards were given up; run it again to try them", file=sys.stderr)
    return failed
