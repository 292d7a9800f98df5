# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy on the loopback interface that resets connections at random."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 2**18


class DroppingProxy:
    """Passes bytes on between clients and a server, and now and then resets both ends.

    Attributes:
        port: Where clients connect.
        drops: Connections that were reset so far.
    """

    def __init__(self, target_port: int, chance: float, seed: int) -> None:
        """Start to listen.

        Args:
            target_port: Port of the server on 127.0.0.1.
            chance: Chance of a reset for each piece that a client sends, 0 to 1.
            seed: Of the random numbers.
        """
        self.drops = 0
        self._target_port = target_port
        self._chance = chance
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """Close everything and wait for the threads."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for source, sink, chance in ((client, server, self._chance), (server, client, 0.0)):
                thread = threading.Thread(target=self._pump, args=(source, sink, chance))
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket, chance: float) -> None:
        try:
            while piece := source.recv(_CHUNK):
                with self._lock:
                    drop = self._random.random() < chance
                    self.drops += drop
                if drop:
                    # Lingering for 0 s makes `close` a reset.
                    for end in (source, sink):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                sink.sendall(piece)
        except OSError:
            return
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    self._open.discard(end)
                end.close()


@contextmanager
def dropping_proxy(target_port: int, chance: float, seed: int = 1) -> Iterator[DroppingProxy]:
    """A running proxy."""
    proxy = DroppingProxy(target_port, chance, seed)
    try:
        yield proxy
    finally:
        proxy.close()
