"""An HTTP proxy on this machine, by which pods reach what answers on its loopback address alone."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: Headers of one connection, which are not handed on (RFC 9110, 7.6.1).
OWN = {"connection", "proxy-connection", "keep-alive", "transfer-encoding"}


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        assert asked.hostname == "localhost", self.path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        there = http.client.HTTPConnection("127.0.0.1", asked.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
        there.request(self.command, f"{asked.path}?{asked.query}" if asked.query else asked.path, body, headers)
        self._hand_back(there.getresponse())
        there.close()

    do_POST = do_HEAD = do_GET

    def _hand_back(self, answer: http.client.HTTPResponse) -> None:
        content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {*OWN, "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def proxy(address: str) -> Iterator[str]:
    """The URL of a proxy at an address of this machine, in the block."""
    server = ThreadingHTTPServer((address, 0), _Relay)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
