# SPDX-License-Identifier: Apache-2.0
"""Settings of a served model, read from the `parameters` of its `config.pbtxt`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ocdserve.backend.gpu.decode import DecoderKind, decoder_kind
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import GENERATION_PARAMETER, InvalidInputError, Limits

# One landscape photograph: the first image of another size takes about 0.1 s more, a second warm-up 0.5 s of loading.
_WARM_UP_SIZES = ((720, 1280),)
_QUEUE_SIZE = 256
_QUEUE_TIME_MS = 1000


@dataclass(frozen=True)
class ServingOptions:
    """Settings of one model instance.

    Attributes:
        bundle: Bundle folder; None for the default detector.
        recogniser: Bundle folder of a recogniser, of the models that read; None for the default one.
        digest: Digest of the bundles as the repository states it; empty: it is computed from the folder.
        runtime: How the network is executed.
        warm_up_sizes: Source sizes (height, width) that the network sees before it is ready.
        gpu: Whether the stages run on a GPU: the one with the index `runtime.device`.
        slots: Batches on the GPU at the same time.
        decoder: JPEG decoder on a GPU (see `ocdserve.backend.gpu.decode.make_decoder`).
        limits: Limits of images and parameters.
        queue_size: Requests with images that may wait for this process, and for the steps after it.
        queue_time_ms: How long such a request may take, in milliseconds, when there is a queue.
        queue_delay_us: How long such a request waits on a GPU for others to share its batch, in microseconds.
    """

    bundle: Path | None
    runtime: RuntimeOptions
    recogniser: Path | None = None
    digest: str = ""
    warm_up_sizes: tuple[tuple[int, int], ...] = _WARM_UP_SIZES
    gpu: bool = False
    slots: int = 2
    decoder: DecoderKind = "cpu"
    limits: Limits = field(default_factory=Limits)
    queue_size: int = _QUEUE_SIZE
    queue_time_ms: int = _QUEUE_TIME_MS
    queue_delay_us: int = 0

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> "ServingOptions":
        """Read what Triton passes to `initialize`.

        Parameters: `bundle` and `recogniser` (folders, relative to the model's own; empty for the default ones),
        `generation`, `runtime`, `threads` (0: all cores), `streams`, `queue_size` and `queue_time_ms`; on a GPU `gpu`
        (`true`), `runtime`, `slots`, `decoder` and `queue_delay_us`; and those of `ocdserve.contract.Limits`. The GPU
        is the one that Triton names for the instance.

        Raises:
            InvalidInputError: A value is not valid.
        """
        config = json.loads(args["model_config"])
        values = {name: item["string_value"] for name, item in config.get("parameters", {}).items()}
        bundle, recogniser = (
            (Path(args["model_repository"]) / values[name]).resolve() if values.get(name) else None
            for name in ("bundle", "recogniser")
        )
        return cls(
            bundle=bundle,
            recogniser=recogniser,
            runtime=RuntimeOptions(
                runtime=values.get("runtime") or None,
                threads=_whole(values, "threads", 0) or None,
                streams=_whole(values, "streams", 1),
                device=max(0, int(args.get("model_instance_device_id") or 0)),
            ),
            digest=values.get(GENERATION_PARAMETER, ""),
            gpu=values.get("gpu") == "true",
            slots=_whole(values, "slots", 2),
            decoder=decoder_kind(values.get("decoder") or "cpu"),
            limits=Limits.parse(values),
            queue_size=_whole(values, "queue_size", _triton_queue_size(config) or _QUEUE_SIZE),
            queue_time_ms=_whole(values, "queue_time_ms", _QUEUE_TIME_MS),
            queue_delay_us=_whole(values, "queue_delay_us", 0),
        )


def _triton_queue_size(config: Mapping[str, Any]) -> int:
    """Size of Triton's queue in repositories that were published before these models had a queue of their own."""
    return int(config.get("dynamic_batching", {}).get("default_queue_policy", {}).get("max_queue_size", 0))


def _whole(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name, "") or str(default)
    try:
        return int(text)
    except ValueError:
        raise InvalidInputError(f"config.pbtxt: parameter {name} must be a whole number; got {text!r}") from None
