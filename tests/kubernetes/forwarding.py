"""A way to a server that a test can close for a while."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Forwarder:
    """Forwards TCP to a server from another port, at its own address or another of this machine."""

    def __init__(self, url: str, at: str | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.server = (parts.hostname, parts.port)
        self.at = at or parts.hostname
        self.listener = self._listen(0)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://{self.at}:{self.port}"
        self.open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """New connections are refused in the block, and those that are open end."""
        self._stop()
        yield
        self.listener = self._listen(self.port)
        self._serve()

    def _listen(self, port: int) -> socket.socket:
        return socket.create_server((self.at, port))

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _stop(self) -> None:
        # Not close alone: a thread that waits in accept would still take one more.
        for each in (self.listener, *self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One connection until both sides have ended it; a run makes thousands, so none is left open."""
        with client, suppress(OSError), socket.create_connection(self.server) as server:
            pair = {client, server}
            self.open |= pair
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()
            self.open -= pair


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
