"""What is measured, in which order."""

from __future__ import annotations

from .servers import Server


Step = tuple[int, Server, str, int]
"""Round, server, what, connections. What is echo, idle, or sessions (full ones of Hawser's)."""


def plan_of(servers: list[Server], rounds: int, connections: list[int], idle: int) -> list[Step]:
    """Every measurement.

    In a round the servers take turns at each count of connections, so that figures that are compared are neighbours in
    time. Each round begins with the next server. With `idle` 0 no idle connections are measured.
    """
    plan = []
    for round_ in range(1, rounds + 1):
        turn = (round_ - 1) % len(servers)
        order = servers[turn:] + servers[:turn]
        for count in connections:
            plan += [(round_, server, "echo", count) for server in order if server.speaks == "echo"]
        if idle:
            for server in order:
                plan.append((round_, server, "idle", idle))
                if server.place == "hawser":
                    plan.append((round_, server, "sessions", idle))
    return plan
