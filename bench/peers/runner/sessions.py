"""What a client says after the upgrade before a server counts it as connected, for each protocol that peers speak."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Callable

TEXT, BINARY = 0x1, 0x2


@dataclass(frozen=True)
class Session:
    """A kind of session. `hello` makes the first frame from the connection's number."""

    subprotocol: str | None = None
    hello: Callable[[int], bytes] | None = None
    answer: bytes = b""
    """What in the server's answer says that the session is there."""


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame of at most 65,535 bytes (RFC 6455 section 5.2), masked with zeros: there is nothing to hide."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def mqtt_connect(client_id: str) -> bytes:
    """MQTT 3.1.1 section 3.1: CONNECT, clean session, no keep-alive; short enough for a length of one byte."""
    def text(value: str) -> bytes:
        return len(value).to_bytes(2, "big") + value.encode()

    body = text("MQTT") + bytes([4, 0x02, 0, 0]) + text(client_id)
    assert len(body) < 128
    return bytes([0x10, len(body)]) + body


CENTRIFUGE_CONNECT = json.dumps({"id": 1, "connect": {}}).encode()
NATS_CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"lang":"none","version":"0"}\r\nPING\r\n'

SESSIONS = {
    "ws": Session(),
    "centrifuge": Session(hello=lambda _: frame(TEXT, CENTRIFUGE_CONNECT), answer=b'"connect"'),
    "nats": Session(hello=lambda _: frame(BINARY, NATS_CONNECT), answer=b"PONG\r\n"),
    "mqtt": Session("mqtt", lambda number: frame(BINARY, mqtt_connect(f"idle-{number}")), b"\x20\x02\x00\x00"),
}
