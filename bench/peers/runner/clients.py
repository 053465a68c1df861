"""The load: what is measured of one running server, and by whom. Each function here is one measurement."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import host
from .holder import Holder, HolderError
from .servers import Running, end
from .sessions import SESSIONS

SPARE_SECONDS = 120
"""What a run of hawser-bench may take beyond the time it measures."""


class ClientError(Exception):
    """A measurement gave no figure."""


@dataclass(frozen=True)
class Clients:
    """Where hawser-bench is. Runs on the cores that its caller was given."""

    release: Path

    def echo(self, running: Running, connections: int, seconds: float) -> dict:
        """CPU of the server a message: 64 bytes, one in flight on each connection, each echo checked."""
        report = self._bench(
            seconds, "echo", "--target", running.url, "--pid", str(running.pid), "--connections", str(connections),
            "--payload-bytes", "64", "--in-flight", "1", "--seconds", str(seconds),
        )
        fields = ("cpu_us_per_message", "messages_per_second", "messages", "bench_cores", "latency_ms", "errors")
        return {"connections": connections} | {field: report[field] for field in fields}

    def idle(self, running: Running, connections: int, seconds: float) -> dict:
        """Memory of the server a connection that says nothing; its CPU for them in the seconds after.

        Bare WebSockets are hawser-bench's, which waits until the server's memory stands still. Sessions in a server's
        own protocol are held here, and the memory is read after the seconds; there is no figure for CPU.
        """
        if running.server.session == "ws":
            arguments = ("--target", running.url, "--pid", str(running.pid), "--session", "ws")
            return self._bench_idle("ws", connections, seconds, *arguments)
        before = host.anonymous_bytes(running.pid)
        with Holder(running.port, running.server.path, SESSIONS[running.server.session]) as holder:
            try:
                opening_seconds = holder.open(connections)
                closed = holder.hold(seconds)
            except (HolderError, OSError) as error:
                raise ClientError(f"idle: {error}") from error
            after = host.anonymous_bytes(running.pid)
        if closed:
            raise ClientError(f"idle: the server closed {closed} of {connections} connections")
        return {
            "connections": connections,
            "session": running.server.session,
            "user_bytes_per_connection": round((after - before) / connections, 1),
            "connects_per_second": round(connections / opening_seconds),
        }

    def idle_sessions(self, connections: int, seconds: float) -> dict:
        """The same of full Hawser sessions, registered at a router: hawser-bench starts both servers itself."""
        return self._bench_idle("hawser", connections, seconds)

    def _bench_idle(self, session: str, connections: int, seconds: float, *arguments: str) -> dict:
        report = self._bench(
            seconds, "idle", *arguments, "--connections", str(connections), "--ping-interval", "0",
            "--hold", str(seconds),
        )
        names = {
            "edge_user_bytes_per_connection": "user_bytes_per_connection",
            "router_user_bytes_per_connection": "router_user_bytes_per_connection",
            "connects_per_second": "connects_per_second",
            "idle_cpu_us_per_connection_second": "idle_cpu_us_per_connection_second",
        }
        # What the kernel took is left out: it is the whole machine's, and still gives back what the last server had.
        sample = {ours: report[theirs] for theirs, ours in names.items() if report.get(theirs) is not None}
        return {"connections": connections, "session": session} | sample

    def _bench(self, seconds: float, *arguments: str) -> dict:
        """One run of hawser-bench; its report."""
        try:
            # A session of its own: Ctrl-C on the terminal is for the runner alone.
            bench = subprocess.Popen(
                [self.release / "hawser-bench", *arguments, "--json"], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )
        except OSError as error:
            raise ClientError(f"hawser-bench {arguments[0]}: {error}") from error
        try:
            said, complained = bench.communicate(timeout=seconds + SPARE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ClientError(f"hawser-bench {arguments[0]}: {error}") from error
        finally:
            end(bench)
        # Its exit status also tells of single errors; what it says of them is more.
        try:
            report = json.loads(said)
        except ValueError:
            raise ClientError(f"hawser-bench {arguments[0]}: {complained.strip()[-500:]}") from None
        if report["errors"]:
            raise ClientError(f"hawser-bench {arguments[0]}: {report['errors']} errors: {report.get('first_error')}")
        return report
