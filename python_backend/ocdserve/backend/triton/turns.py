# SPDX-License-Identifier: Apache-2.0
"""How requests share a recogniser's network: line by line, in turns."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.network.protocols import RecogniserNetwork
from ocdserve.backend.stages.ctc import Steps
from ocdserve.backend.triton.waiter import Waiter


class LineTurns:
    """A queue of lines before a network. Thread-safe.

    Each request has as many lines in it as the network computes at the same time, and adds the next one when one of
    them is read: a page of many lines takes its turns among the others, and its lines end with its deadline.

    Args:
        network: Reads the lines; a line's result does not depend on others.
        streams: Lines in it at the same time.
    """

    def __init__(self, network: RecogniserNetwork, streams: int) -> None:
        self._network = network
        self._streams = streams
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="line")

    def of(self, waiter: Waiter) -> "RequestTurns":
        """The network, as one request sees it."""
        return RequestTurns(self._network, self._pool, self._streams, waiter)

    def close(self) -> None:
        """Wait for the lines in the network."""
        self._pool.shutdown()


class RequestTurns:
    """A `RecogniserNetwork` for the lines of one request."""

    def __init__(self, network: RecogniserNetwork, pool: ThreadPoolExecutor, streams: int, waiter: Waiter) -> None:
        self._network = network
        self._pool = pool
        self._streams = streams
        self._waiter = waiter

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `RecogniserNetwork.infer`.

        Raises:
            ExpiredError: The request's deadline is over before the next line.
            CancelledError: Its client has cancelled it.
        """
        free = threading.Semaphore(self._streams)
        reading: list[Future[list[Steps]]] = []
        for line in lines:
            free.acquire()
            self._waiter.check("recognise")
            reading.append(self._pool.submit(self._network.infer, [line]))
            reading[-1].add_done_callback(lambda _: free.release())
        return [steps for each in reading for steps in each.result()]
