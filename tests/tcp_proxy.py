"""A proxy in front of a server on a socket, for any protocol, that refuses, hangs or cuts connections as told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Literal

Mode = Literal["up", "hanging", "refusing"]

CHUNK = 65_536

LONGEST_WORD = 200


@dataclass(frozen=True, eq=False)
class Cut:
    """When to reset a connection: once a client has sent these words, one after the other, on one connection."""

    words: tuple[bytes, ...]
    when: Literal["before", "after"]


class TcpProxy:
    """Passes bytes on to a server, between clients and a port of its own on the loopback device.

    Args:
        target: The server's address: host and port, or the path of a Unix socket.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.target = target
        self.connections = 0
        self.failures = 0
        self._mode: Mode = "up"
        self._cuts: list[Cut] = []
        self._answers_left: int | None = None
        self._lock = threading.RLock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    @property
    def mode(self) -> Mode:
        """What becomes of connections from now on: those that are open end, unless they are to hang."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        was, self._mode = self._mode, mode
        if mode == "refusing":
            self._stop_listening()
        if mode not in ("hanging", was):
            self._cut_all()
        if mode != "refusing" and self._listener is None:
            self._listen()

    def cut_at(self, *words: bytes, times: int = 1, when: Literal["before", "after"] = "before") -> None:
        """Reset connections on which a client sends these words: before the server gets the last, or once it answers.

        Args:
            *words: What to look for in what a client sends, in this order.
            times: How many connections to cut.
            when: "after" keeps from the client what the server has answered.
        """
        with self._lock:
            self._cuts += [Cut(words, when) for _ in range(times)]

    def cut_answers_after(self, count: int) -> None:
        """Reset the connection on which the server's answers, of all connections, go beyond so many bytes."""
        with self._lock:
            self._answers_left = count

    def close(self) -> None:
        """End all connections, and take no more."""
        self.mode = "refusing"

    def _listen(self) -> None:
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone leaves a thread that accepts waiting, and the port taken.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                server = self._connect()
                cut_at_answer = threading.Event()
                with self._lock:
                    self._open |= {client, server}
                for act in (self._pass_questions, self._pass_answers):
                    threading.Thread(target=act, args=(client, server, cut_at_answer), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self.target, str):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            return server
        return socket.create_connection(self.target)

    def _pass_questions(self, client: socket.socket, server: socket.socket, cut_at_answer: threading.Event) -> None:
        seen: dict[Cut, int] = {}
        last = b""
        with contextlib.suppress(OSError):
            while sent := client.recv(CHUNK):
                if self._mode == "hanging":
                    continue
                if (when := self._cut_due(last + sent, seen)) == "before":
                    break
                if when == "after":
                    cut_at_answer.set()
                server.sendall(sent)
                # Words may come in two pieces, and are found once all the same.
                last = sent[-LONGEST_WORD:]
        self._end(client, server)

    def _pass_answers(self, client: socket.socket, server: socket.socket, cut_at_answer: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while sent := server.recv(CHUNK):
                if self._mode == "hanging":
                    continue
                if cut_at_answer.is_set() or self._is_too_much(len(sent)):
                    break
                client.sendall(sent)
        self._end(client, server)

    def _cut_due(self, sent: bytes, seen: dict[Cut, int]) -> Literal["before", "after"] | None:
        """Look for words in what a client sends; `seen` is how many of each cut's it has sent before."""
        with self._lock:
            for cut in self._cuts:
                found, at = seen.get(cut, 0), 0
                while found < len(cut.words) and (at := sent.find(cut.words[found], at)) >= 0:
                    found += 1
                seen[cut] = found
                if found == len(cut.words):
                    self._cuts.remove(cut)
                    self.failures += 1
                    return cut.when
        return None

    def _is_too_much(self, count: int) -> bool:
        with self._lock:
            if self._answers_left is None:
                return False
            self._answers_left -= count
            if self._answers_left >= 0:
                return False
            self._answers_left = None
            self.failures += 1
            return True

    def _end(self, *connections: socket.socket) -> None:
        for connection in connections:
            with self._lock:
                if connection not in self._open:
                    continue
                self._open.discard(connection)
            with contextlib.suppress(OSError):
                # The client's is reset rather than closed, as by a server that dies.
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _cut_all(self) -> None:
        with self._lock:
            connections = tuple(self._open)
        self._end(*connections)
