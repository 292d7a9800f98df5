# SPDX-License-Identifier: Apache-2.0
"""What to publish, and where."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ocdserve.backend.gpu.decode import decoder_kind
from ocdserve.backend.network.options import GPU_RUNTIMES
from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.publish.tuning import Tuning
from ocdserve.contract import InvalidInputError, Limits, not_one_of

NetworkPlatform = Literal["python", "tensorrt_plan"]


@dataclass(frozen=True)
class PublishOptions:
    """What to publish, and where.

    Attributes:
        repository: Folder to write; it may hold an earlier publication, which is replaced, and other models, which
            stay.
        bundle: Bundle folder; None for the default detector.
        recogniser: Bundle folder of a recogniser, or `default`, for the models that read; None: these are left out.
        runtime: Runtime of the network; None: the fastest that is installed on the server.
        threads: Cores for the network, on a GPU for decoding; None: all that the server has.
        streams: Images in the network at the same time; on a GPU batches, where 1 means 2.
        network: What executes the network: `python`, our model in Triton's Python backend, or `tensorrt_plan`,
            Triton's TensorRT backend with the engine of the bundle.
        gpu: All stages on the server's GPUs, one instance of each model on each of them.
        decoder: JPEG decoder on a GPU (see `ocdserve.backend.gpu.decode.make_decoder`).
        instances: Processes of each model that holds the network; see `Tuning`, also for
            the next three.
        queue_size: Requests that may wait for each model.
        queue_delay_us: How long a request waits for others to share its batch, in microseconds.
        queue_time_ms: How long a request may take when there is a queue, in milliseconds.
        require_manifest: Whether to refuse a bundle without a manifest.
        limits: Limits of images and parameters.
        environment: Packages of the models for a Triton whose Python lacks them, which becomes part of the repository;
            None: its Python has them.

    Raises:
        InvalidInputError: An option is out of its range, or they contradict each other.
    """

    repository: Path
    bundle: Path | None = None
    runtime: str | None = None
    threads: int | None = None
    streams: int = 1
    network: NetworkPlatform = "python"
    gpu: bool = False
    decoder: str = "cpu"
    instances: int = 1
    queue_size: int = 256
    queue_delay_us: int = 0
    queue_time_ms: int = 1000
    require_manifest: bool = False
    limits: Limits = field(default_factory=Limits)
    environment: PackedEnvironment | None = None
    recogniser: Path | str | None = None

    def __post_init__(self) -> None:
        Tuning(**{item.name: getattr(self, item.name) for item in fields(Tuning)})
        if decoder_kind(self.decoder) != "cpu" and not self.gpu:
            raise InvalidInputError(f"the decoder {self.decoder} needs a GPU; publish with --gpu, or leave it out")
        if self.runtime is not None and (self.runtime in GPU_RUNTIMES) != self.gpu:
            raise InvalidInputError(
                f"the runtime {self.runtime} computes on the {'CPU' if self.gpu else 'GPU'}; publish "
                f"{'without' if self.gpu else 'with'} --gpu, or name another runtime"
            )
        if self.network not in get_args(NetworkPlatform):
            raise not_one_of("network", self.network, get_args(NetworkPlatform))

    @classmethod
    def tuned(cls, repository: Path, bundle: Path | None, tuning: Tuning, **more: Any) -> "PublishOptions":
        """Options with the values of a tuning; `more` are the other fields."""
        return cls(repository, bundle, **asdict(tuning), **more)
