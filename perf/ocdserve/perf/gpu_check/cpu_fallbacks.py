# SPDX-License-Identifier: Apache-2.0
"""Counting the images that post-processing leaves to the CPU; it tells of each in its log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ocdserve.backend.gpu import postprocess


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self.texts.append(record.getMessage())


@contextmanager
def left_to_cpu() -> Iterator[list[str]]:
    """What post-processing says within the block of images that are too much for its tables, one text each."""
    logger = logging.getLogger(postprocess.__name__)
    messages, before = Messages(), logger.propagate
    logger.addHandler(messages)
    logger.propagate = False
    try:
        yield messages.texts
    finally:
        logger.propagate = before
        logger.removeHandler(messages)
