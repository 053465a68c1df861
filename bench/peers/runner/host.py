"""This machine and its processes: facts, ports, descriptors, memory, cores."""

from __future__ import annotations

import datetime
import os
import platform
import random
import resource
import socket
import time
from pathlib import Path

PORT_MIN = 15_000


def machine() -> dict:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": models[0] if models else "unknown",
        "cores": os.cpu_count(),
        "memory_mib": int(memory.split()[1]) // 1024,
        "kernel": platform.release(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def anonymous_bytes(pid: int) -> int:
    """Memory that belongs to the process alone and to no file: heap, stacks, anonymous maps."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise OSError("smaps_rollup has no line Anonymous")


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that are kept busy while this process waits."""
    def read() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        # user nice system idle iowait irq softirq steal
        return sum(fields), fields[3] + fields[4]

    total, idle = read()
    time.sleep(seconds)
    total, idle = (after - before for after, before in zip(read(), (total, idle)))
    return round((os.cpu_count() or 1) * (1 - idle / max(total, 1)), 2)


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands out: no client's socket will sit on it."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1_000):
        port = random.randrange(PORT_MIN, max(first, PORT_MIN + 1))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORT_MIN} and {first}")


def raise_descriptor_limit() -> int:
    """Raises this process's limit to what it may have, for its children too, and returns it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def cores() -> tuple[set[int], set[int]]:
    """Where the servers run and where their clients: a core each if there are two, or else the same for both."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, {usable[1]}) if len(usable) > 1 else ({usable[0]}, {usable[0]})
