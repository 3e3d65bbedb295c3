"""A proxy in front of a real server of HTTP, on a real socket, that answers well or badly as told."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["up", "slow", "hanging", "401", "404", "429", "500", "reset", "cut", "down"]

HELD = 600.0
"""Seconds that a hanging call is held at most, so that no thread outlives the tests by far."""

HOP = {"connection", "content-length", "transfer-encoding", "host", "keep-alive", "date", "server"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that the base class calls

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode = proxy.arrived(self.command, self.path)
        if mode == "hanging":
            proxy.released.wait(HELD)
            self.close_connection = True
        elif mode == "reset":
            # A connection that is closed with this option is reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif mode.isdecimal():
            self._answer(int(mode), proxy.refusal_headers, b'{"detail": "as told"}')
        else:
            if mode == "slow":
                proxy.released.wait(proxy.delay)
            answer = self._forward(body)
            proxy.answered(self.command, self.path)
            self._answer(*answer, is_cut=mode == "cut")

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = self.server.proxy.target
        upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        with contextlib.closing(upstream):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if is_cut:
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self.open: set[Any] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        pass  # clients that give up are what this is for


class Proxy:
    """Passes calls on to an API, and counts them.

    Args:
        api_url: Address of the real API.
        delay: Seconds that each answer takes in mode "slow".

    Attributes:
        plan: How the next calls are answered, one after the other, before `mode` holds again.
        refusal_headers: Headers of answers that are an error's.
    """

    def __init__(self, api_url: str, delay: float = 2.0) -> None:
        self.target = urlsplit(api_url)
        self.delay = delay
        self.released = threading.Event()
        self.calls: list[tuple[str, str]] = []
        self.answers: Counter[str] = Counter()
        self.plan: deque[Mode] = deque()
        self.refusal_headers: list[tuple[str, str]] = []
        self._mode: Mode = "up"
        self._changed = threading.Condition()
        self._server: _Server | None = None
        self._port = 0
        self._open()

    @property
    def url(self) -> str:
        """Address of the API behind the proxy."""
        return f"http://127.0.0.1:{self._port}{self.target.path}"

    @property
    def mode(self) -> Mode:
        """How calls are answered from now on."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if self._mode == "down" and mode != "down":
            self._open()
        with self._changed:
            self._mode = mode
        if mode != "hanging":
            # Those that hang end without an answer, as when a process behind them is killed.
            released, self.released = self.released, threading.Event()
            released.set()
        if mode == "down":
            self.close()

    def arrived(self, method: str, path: str) -> Mode:
        """Count a call; return how it is to be answered."""
        with self._changed:
            self.calls.append((method, path))
            self._changed.notify_all()
            return self.plan.popleft() if self.plan else self._mode

    def answered(self, method: str, path: str) -> None:
        """Count an answer of the real API."""
        with self._changed:
            self.answers[f"{method} {path}"] += 1
            self._changed.notify_all()

    def wait_for_calls(self, more: int, timeout: float = 60.0) -> bool:
        """Wait until so many more calls have arrived than there are now."""
        with self._changed:
            wanted = len(self.calls) + more
            return self._changed.wait_for(lambda: len(self.calls) >= wanted, timeout)

    def close(self) -> None:
        """Close the socket, and every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        self.released.set()
        server.shutdown()
        server.server_close()
        for connection in list(server.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _open(self) -> None:
        self._server = _Server(self, self._port)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
