"""Opens many WebSockets from one thread and holds them: for protocols that hawser-bench does not speak."""

from __future__ import annotations

import select
import socket
import time

from .sessions import Session

OPENING_MAX = 128
"""Handshakes on their way at once, well below a listener's usual backlog."""
ANSWER_BYTES_MAX = 64 * 1024
SECONDS_MAX, SECONDS_EACH_MAX = 20.0, 0.005


class HolderError(Exception):
    """A server did not take the connections."""


class Holder:
    """Holds connections to one server. A context manager: leaving it closes them all."""

    def __init__(self, port: int, path: str, session: Session):
        self.session = session
        self.port = port
        self.request = self._request(path)
        self.sockets: dict[int, socket.socket] = {}
        self.opening: dict[int, tuple[int, bytearray]] = {}
        """Number of the connection and what it has heard, until it is open."""
        self.closed = 0
        self.poll = select.epoll()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets.values():
            each.close()
        self.poll.close()

    def open(self, connections: int) -> float:
        """Opens them and returns the seconds it took. Raises HolderError when one is refused or it takes too long."""
        began = time.monotonic()
        deadline = began + SECONDS_MAX + SECONDS_EACH_MAX * connections
        begun = 0
        while begun < connections or self.opening:
            if self.closed or time.monotonic() > deadline:
                why = "one was closed" if self.closed else "it took too long"
                raise HolderError(f"{begun - len(self.opening)} of {connections} connections were open when {why}")
            while begun < connections and len(self.opening) < OPENING_MAX:
                self._begin(begun)
                begun += 1
            self._turn(0.1)
        return time.monotonic() - began

    def hold(self, seconds: float) -> int:
        """Waits, reads and drops what comes, and returns how many connections the server has closed."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._turn(left)
        return self.closed

    def _begin(self, number: int) -> None:
        each = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        each.setblocking(False)
        self.sockets[each.fileno()] = each
        self.opening[each.fileno()] = (number, bytearray())
        self.poll.register(each.fileno(), select.EPOLLIN)
        # A fresh socket's send buffer holds a request and a hello.
        each.sendall(self.request)

    def _turn(self, seconds: float) -> None:
        for fd, _ in self.poll.poll(seconds):
            try:
                heard = self.sockets[fd].recv(ANSWER_BYTES_MAX)
            except ConnectionError:
                heard = b""
            if not heard:
                self.poll.unregister(fd)
                self.opening.pop(fd, None)
                self.closed += 1
            elif fd in self.opening:
                self._hear(fd, heard)

    def _hear(self, fd: int, heard: bytes) -> None:
        number, buffer = self.opening[fd]
        was_upgraded = b"\r\n\r\n" in buffer
        buffer += heard
        head, blank, rest = buffer.partition(b"\r\n\r\n")
        if not blank:
            if len(buffer) > ANSWER_BYTES_MAX:
                raise HolderError("the answer to the upgrade does not end")
            return
        if not was_upgraded:
            status = bytes(head).split(b"\r\n")[0].decode("latin-1")
            if " 101 " not in f"{status} ":
                raise HolderError(f"the upgrade was answered with {status!r}")
            if self.session.hello:
                self.sockets[fd].sendall(self.session.hello(number))
        if self.session.answer in rest:
            del self.opening[fd]
        elif len(rest) > ANSWER_BYTES_MAX:
            raise HolderError(f"no {self.session.answer!r} came after the hello, but {bytes(rest[:80])!r}")

    def _request(self, path: str) -> bytes:
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            # The sample nonce of RFC 6455 section 1.3: what it proves does not matter here.
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        if self.session.subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {self.session.subprotocol}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()
