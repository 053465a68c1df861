"""What can be checked of the runner without building a peer: `python3 -m unittest runner.test_runner`."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import unittest
from collections import Counter
from pathlib import Path

from . import figures, host
from .holder import Holder, HolderError
from .plan import plan_of
from .servers import PEERS, Running, ServerError, extra, hawser, peers
from .sessions import BINARY, SESSIONS, TEXT, frame, mqtt_connect

ANYWHERE = os.sched_getaffinity(0)


def echo_sample(round_: int, server: str, connections: int, cpu: float) -> dict:
    return {"round": round_, "server": server, "connections": connections, "cpu_us_per_message": cpu,
            "messages_per_second": 1e6 / cpu}


def idle_sample(round_: int, server: str, session: str, bytes_each: float) -> dict:
    return {"round": round_, "server": server, "session": session, "connections": 100,
            "user_bytes_per_connection": bytes_each}


class Figures(unittest.TestCase):
    def test_a_ratio_is_taken_round_by_round(self):
        # The machine became twice as slow in round 2: the medians of each would say 3 / 1.5, the rounds say 2 twice.
        samples = [echo_sample(1, "Hawser", 50, 1.0), echo_sample(1, "other", 50, 2.0),
                   echo_sample(2, "Hawser", 50, 2.0), echo_sample(2, "other", 50, 4.0),
                   echo_sample(3, "other", 50, 9.0)]
        rows = {row["server"]: row for row in figures.summarise(samples, "cpu_us_per_message", ("connections",))}
        self.assertEqual(rows["other"]["ratio"], {"median": 2.0, "min": 2.0, "max": 2.0})
        self.assertEqual(rows["other"]["cpu_us_per_message"], {"median": 4.0, "min": 2.0, "max": 9.0})
        self.assertEqual(rows["other"]["rounds"], 3)

    def test_counts_of_connections_are_kept_apart(self):
        samples = [echo_sample(1, "Hawser", 50, 1.0), echo_sample(1, "Hawser", 2000, 5.0),
                   echo_sample(1, "other", 2000, 4.0)]
        rows = figures.summarise(samples, "cpu_us_per_message", ("connections",))
        self.assertEqual([row["ratio"]["median"] for row in rows], [1.0, 1.0, 0.8])

    def test_without_a_base_there_is_no_ratio(self):
        rows = figures.summarise([echo_sample(1, "other", 50, 1.0)], "cpu_us_per_message", ("connections",))
        self.assertIsNone(rows[0]["ratio"])

    def test_sessions_of_all_kinds_are_compared_with_our_bare_connections(self):
        samples = [idle_sample(1, "Hawser", "ws", 200.0), idle_sample(1, "Hawser", "hawser", 300.0),
                   idle_sample(1, "broker", "mqtt", 2000.0)]
        rows = figures.summarise(samples, "user_bytes_per_connection", ("session", "connections"))
        self.assertEqual([row["ratio"]["median"] for row in rows], [1.0, 1.5, 10.0])

    def test_the_echo_table_begins_with_the_cheapest_and_says_where_there_is_no_figure(self):
        samples = [echo_sample(1, "Hawser", 50, 2.0), echo_sample(1, "Hawser", 2000, 4.0),
                   echo_sample(1, "fast", 2000, 3.0), echo_sample(1, "broken", 50, 1.0)]
        lines = figures.echo_table(samples, str).splitlines()
        self.assertEqual([line.split(" | ")[0] for line in lines[2:]], ["| fast", "| Hawser", "| broken"])
        self.assertEqual(lines[2].split(" | ")[1:],
                         ["–", "–", "–", "3.00 (3.00 to 3.00) µs", "0.75 (0.75 to 0.75)", "333,333 |"])
        self.assertEqual({line.count("|") for line in lines}, {8})

    def test_the_idle_table_tells_bare_connections_from_sessions(self):
        samples = [idle_sample(1, "Hawser", "ws", 200.0), idle_sample(1, "Hawser", "hawser", 300.0)]
        lines = figures.idle_table(samples, str).splitlines()
        self.assertEqual(lines[2], "| Hawser | 100 | bare WebSockets | 200 (200 to 200) | 1 |")
        self.assertEqual(lines[3], "| Hawser | 100 | sessions (hawser) | 300 (300 to 300) | 1.5 (1.5 to 1.5) |")

    def test_a_section_replaces_what_stood_between_the_markers(self):
        once = figures.paste("# Results\n\ntext\n", "first")
        twice = figures.paste(once + "\nafter\n", "second")
        self.assertTrue(twice.startswith("# Results\n\ntext\n"))
        self.assertTrue(twice.endswith("\nafter\n"))
        self.assertNotIn("first", twice)
        self.assertEqual(twice.count("second"), 1)
        with self.assertRaises(ValueError):
            figures.paste(figures.MARK_BEGIN, "x")


class Plan(unittest.TestCase):
    def test_every_server_is_measured_once_a_round_and_each_round_begins_with_another(self):
        servers = [hawser(Path("/"), 10), extra("a", "x {port}", "/", "echo"), extra("b", "x {port}", "/", "mqtt")]
        plan = plan_of(servers, 3, [50, 2000], 100)
        self.assertEqual(set(Counter(plan).values()), {1})
        # Echo of the two that echo, at two counts; idle of three; our own sessions.
        self.assertEqual(len(plan), 3 * (2 * 2 + 3 + 1))
        self.assertEqual([next(step[1].name for step in plan if step[0] == at) for at in (1, 2)], ["Hawser", "a"])
        self.assertEqual({step[2] for step in plan if step[1].name == "b"}, {"idle"})
        self.assertEqual([step[2] for step in plan_of(servers, 1, [50], 0)], ["echo", "echo"])


class Servers(unittest.TestCase):
    def test_every_peer_has_a_start_script_a_known_protocol_and_a_line_in_the_readme(self):
        readme = (PEERS / "README.md").read_text()
        for peer in peers():
            self.assertTrue(os.access(peer.start_script, os.X_OK), peer.name)
            self.assertIn(peer.session, SESSIONS)
            self.assertRegex(readme, rf"(?m)^\| `{re.escape(peer.name)}` \|")
        self.assertEqual({path.parent.name for path in PEERS.glob("*/start")}, {peer.name for peer in peers()})

    def test_a_server_runs_while_it_is_wanted_and_is_gone_after(self):
        server = extra("python", f"{sys.executable} -m http.server --bind 127.0.0.1 {{port}}", "/", "echo")
        with Running(server, ANYWHERE) as running:
            running.check_alive()
            self.assertGreater(host.anonymous_bytes(running.pid), 100_000)
        self.assertIsNotNone(running.process.returncode)
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", running.port), timeout=5)

    def test_a_server_that_ends_by_itself_is_told_with_its_last_words(self):
        server = extra("broken", "sh -c 'echo no {port} for me; exit 3'", "/", "echo")
        with self.assertRaisesRegex(ServerError, r"ended by itself \(3\): no \d+ for me"):
            with Running(server, ANYWHERE):
                self.fail("it runs")

    def test_an_extra_server_needs_a_port_and_a_session_that_is_known(self):
        for line, session in (("server", "echo"), ("server {port}", "telnet")):
            with self.assertRaises(ValueError):
                extra("x", line, "/", session)


class Sessions(unittest.TestCase):
    def test_frames_are_masked_and_have_the_length_of_their_payload(self):
        self.assertEqual(frame(TEXT, b"Hello"), b"\x81\x85\0\0\0\0Hello")
        self.assertEqual(frame(BINARY, bytes(126))[:8], b"\x82\xfe\x00\x7e\0\0\0\0")

    def test_the_mqtt_connect_is_that_of_section_3_1(self):
        self.assertEqual(mqtt_connect("a"), b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")

    def test_a_session_is_open_when_its_answer_has_come_and_a_closed_one_is_counted(self):
        with Listener(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\x82\x04\x20\x02\0\0") as listener:
            with Holder(listener.port, "/mqtt", SESSIONS["mqtt"]) as holder:
                holder.open(1)
                self.assertEqual(holder.hold(0.0), 0)
                listener.close_connection()
                self.assertEqual(holder.hold(0.5), 1)
            self.assertIn(b"GET /mqtt HTTP/1.1\r\n", listener.heard)
            self.assertIn(b"Sec-WebSocket-Protocol: mqtt\r\n", listener.heard)
            self.assertTrue(listener.heard.endswith(frame(BINARY, mqtt_connect("idle-0"))))

    def test_a_refused_upgrade_is_told_with_its_status(self):
        with Listener(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"") as listener:
            with Holder(listener.port, "/", SESSIONS["ws"]) as holder:
                with self.assertRaisesRegex(HolderError, "503 Service Unavailable"):
                    holder.open(1)


class Listener:
    """Takes one connection and answers its head, then its first frame, byte by byte: a reader sees every cut."""

    def __init__(self, to_head: bytes, to_frame: bytes):
        self.to_head, self.to_frame, self.heard = to_head, to_frame, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Listener:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.close_connection()
        self.listener.close()

    def close_connection(self) -> None:
        self.thread.join()
        self.connection.close()

    def _serve(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(5)
        while not self.heard.endswith(b"\r\n\r\n"):
            self.heard += self.connection.recv(4096)
        self._answer(self.to_head)
        if self.to_frame:
            self.heard += self.connection.recv(4096)
            self._answer(self.to_frame)

    def _answer(self, answer: bytes) -> None:
        for byte in answer:
            self.connection.send(bytes([byte]))


if __name__ == "__main__":
    unittest.main()
