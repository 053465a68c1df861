"""The servers under test: what they are, how they are built, and one running at a time."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from . import figures, host
from .sessions import SESSIONS

PEERS = Path(__file__).resolve().parents[1]
PROJECT = PEERS.parents[1]

BUILD_SECONDS_MAX = 1_800
READY_SECONDS_MAX = 20
STOP_SECONDS_MAX = 5
LOG_TAIL_BYTES = 2_000


class ServerError(Exception):
    """A server could not be built, did not start, or ended by itself."""


@dataclass(frozen=True)
class Server:
    """One server of the table."""

    name: str
    path: str
    speaks: str
    """`echo`, or its own protocol: a key of SESSIONS."""
    threads: str
    note: str
    place: str
    """`bench/peers`, `hawser`, or `beside the project`."""
    command: Callable[[int], list[str]]
    """What to run, from the port that it is to listen on."""

    @property
    def session(self) -> str:
        """What an idle connection of it is: a bare WebSocket, or a session in its own protocol."""
        return "ws" if self.speaks == "echo" else self.speaks

    @property
    def start_script(self) -> Path | None:
        return PEERS / self.name / "start" if self.place == "bench/peers" else None


def peers() -> list[Server]:
    """Those of peers.toml."""

    def command(name: str) -> Callable[[int], list[str]]:
        return lambda port: [str(PEERS / name / "start"), str(port)]

    entries = tomllib.loads((PEERS / "peers.toml").read_text())["peer"]
    return [Server(**entry, place="bench/peers", command=command(entry["name"])) for entry in entries]


def hawser(release: Path, connections_max: int) -> Server:
    """One shard of the edge, with its echo path and without a router."""

    def command(port: int) -> list[str]:
        # Nobody listens on the discard port: an edge without its router echoes all the same.
        edge = f"--dev-auth --echo-path /echo --shards 1 --connections-max {connections_max} --router 127.0.0.1:9"
        addresses = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{host.free_port()}"]
        return [str(release / "hawser-edge"), *edge.split(), *addresses]

    return Server(figures.BASE, "/echo", "echo", "1 shard", "echo path, no router", "hawser", command)


def extra(name: str, line: str, path: str, session: str) -> Server:
    """A server that is not in the repository. `{port}` in its command line is the port."""

    def command(port: int) -> list[str]:
        return [word.replace("{port}", str(port)) for word in shlex.split(line)]

    if "{port}" not in line:
        raise ValueError(f"--extra {name}: the command has no {{port}}")
    if session != "echo" and session not in SESSIONS:
        raise ValueError(f"--extra-session {name}: {session!r} is none of echo, {', '.join(SESSIONS)}")
    return Server(name, path, session, "as it was started", "", "beside the project", command)


def build(server: Server) -> str:
    """Builds a peer, and returns its version as its start script tells it. Raises ServerError."""
    if server.start_script is None:
        return ""
    try:
        done = subprocess.run(
            [server.start_script, "version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            timeout=BUILD_SECONDS_MAX, check=True, text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{server.name} could not be built: {error}") from error
    return done.stdout.strip()


class Running:
    """A server that runs on a free port and the given cores. A context manager: leaving it ends the process."""

    def __init__(self, server: Server, on: set[int]):
        self.server = server
        self.on = on
        self.port = host.free_port()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{self.server.path}"

    def __enter__(self) -> Running:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.server.command(self.port), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            # Ctrl-C on the terminal is for the runner alone; it ends its servers itself.
            start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, self.on),
        )
        try:
            self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def check_alive(self) -> None:
        """Raises ServerError, with the end of its log, when the process ended by itself."""
        if (status := self.process.poll()) is not None:
            raise ServerError(f"{self.server.name} ended by itself ({status}): {self._log_tail()}")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            self.check_alive()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise ServerError(f"{self.server.name} does not listen: {self._log_tail()}") from None
                time.sleep(0.02)

    def _stop(self) -> None:
        end(self.process)
        self.log.close()

    def _log_tail(self) -> str:
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return self.log.read().decode(errors="replace").strip()


def end(process: subprocess.Popen) -> None:
    """Ends a process that may have ended: asks first, so that it can end what it has started itself."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
