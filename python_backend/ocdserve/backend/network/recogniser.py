# SPDX-License-Identifier: Apache-2.0
"""Loading a recogniser's network into one of the runtimes."""

import logging
from dataclasses import replace

import cv2
import numpy as np

from ocdserve.backend.network.load import chosen_runtime, load_in_time, maker_on_cpu, open_gpu_with_recogniser
from ocdserve.backend.network.options import GPU_RUNTIMES, RuntimeOptions
from ocdserve.backend.network.protocols import RecogniserNetwork
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.contract import InvalidInputError, UnavailableError

# Of the picture's height.
_TRIAL_WIDTH = 3

# 1, rounded in bfloat16 or by quantisation.
_MOST_PROBABILITY = 1.02

# Lines on a GPU at the same time: each stream may have a session of its own.
_MOST_STREAMS = 2
# And on a CPU: each stream keeps up to 120 MB for the widths that it has seen, see docs/decisions/0080.
_MOST_STREAMS_ON_CPU = 4

_logger = logging.getLogger(__name__)


def for_lines(options: RuntimeOptions) -> RuntimeOptions:
    """The options with as many streams as lines are read at the same time on a CPU.

    A line is small: several at a time, on a core or a few each, take less time than one after the other on all.
    """
    return replace(options, streams=min(options.thread_count, _MOST_STREAMS_ON_CPU))


def load_recogniser(bundle: RecogniserBundle, options: RuntimeOptions | None = None) -> RecogniserNetwork:
    """Compile a recogniser's network for all widths; a log record says if it reads nothing in a picture with a word.

    Raises:
        InvalidInputError: The runtime cannot execute the bundle's network, or not load it in time.
        UnavailableError: The runtime is not installed, or the bundle was built for an engine.
    """
    options = options or RuntimeOptions()
    runtime = chosen_runtime(bundle, options.runtime)
    if runtime in GPU_RUNTIMES:
        from ocdserve.backend.network.host_network import HostRecogniser

        opened = open_gpu_with_recogniser(bundle, replace(options, runtime=runtime))
        return HostRecogniser(*opened, min(options.streams, _MOST_STREAMS))
    maker = maker_on_cpu(bundle, runtime)
    return load_in_time(bundle, lambda: _tried(maker(bundle, options), bundle))


def _tried(network: RecogniserNetwork, bundle: RecogniserBundle) -> RecogniserNetwork:
    """The network, once it has answered a picture of a word.

    Raises:
        InvalidInputError: It cannot, or its scores are no probabilities though the bundle says so.
    """
    spec = bundle.spec
    picture = np.full((spec.height, spec.widths.fitted(_TRIAL_WIDTH * spec.height), 3), 255, np.uint8)
    origin = (spec.height // 8, spec.height * 3 // 4)
    cv2.putText(picture, "Text", origin, cv2.FONT_HERSHEY_SIMPLEX, spec.height / 48, (0, 0, 0), 2, cv2.LINE_AA)
    try:
        steps = network.infer([picture])[0]
    except UnavailableError as error:
        raise InvalidInputError(
            f"{bundle.model_path.name} fails on a line of {picture.shape[0]} x {picture.shape[1]} pixels: {error}"
        ) from error
    # A class above a half is taken without a look at the others: among logits it may not be the best.
    highest, lowest = float(steps.probabilities.max(initial=0)), float(steps.probabilities.min(initial=0))
    if highest > _MOST_PROBABILITY or lowest < 0:
        raise InvalidInputError(
            f"network.scores of recogniser.json must say what {bundle.model_path.name} returns; got softmax for scores "
            f"from {lowest:.3g} to {highest:.3g}, which are no probabilities. Set it to logits."
        )
    if (steps.classes == spec.network.blank).all():
        _logger.warning(
            "the network of %s reads nothing in a picture with a word: it is damaged, or network.mean and network.std "
            "of recogniser.json are not what it was trained with",
            spec.name,
        )
    return network
