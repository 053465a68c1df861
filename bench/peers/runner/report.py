"""The result of a run, as JSON and as a section of a Markdown page."""

from __future__ import annotations

from . import figures
from .servers import Server

BESIDE = "†"


def describe(server: Server, version: str) -> dict:
    """What the JSON says of a server."""
    fields = ("name", "place", "speaks", "threads", "note")
    return {field: getattr(server, field) for field in fields} | {"version": version}


def summarised(result: dict) -> dict:
    """The result with its medians and ratios beside the raw samples."""
    echo, idle = result["echo"], result["idle"]
    return result | {
        "summary": {
            "echo": figures.summarise(echo, "cpu_us_per_message", ("connections",)),
            "idle": figures.summarise(idle, "user_bytes_per_connection", ("session", "connections")),
        }
    }


def markdown(result: dict) -> str:
    """The section for bench/RESULTS.md."""
    beside = {server["name"] for server in result["servers"] if server["place"] == "beside the project"}

    def mark(name: str) -> str:
        return f"**{name}**" if name == figures.BASE else f"{name} {BESIDE}" if name in beside else name

    machine, busy = result["machine"], max(result["busy_cores_before_round"], default=0.0)
    parts = [
        "## Peers",
        f"`{result['command']}`, {machine['date'][:10]}: {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_mib'] // 1024} GiB, Linux {machine['kernel']}. {result['rounds']} rounds of "
        f"{result['seconds']:g} s, before which others kept at most {busy:.1f} cores busy. One server at a time, alone "
        "on one core and started anew for each figure, its clients on another. Median (smallest to largest); a ratio "
        "is of two figures of one round, more than 1 costs more than Hawser."
        + (f" {BESIDE}: built from its public source beside the project, not in this repository." if beside else ""),
    ]
    if result["echo"]:
        parts += ["### Echo, 64 bytes, one in flight", figures.echo_table(result["echo"], mark)]
    if result["idle"]:
        parts += [
            "### Idle connections",
            "Anonymous memory of the server (smaps_rollup) with all of them connected less before the first, when it "
            "stands still. What the kernel keeps for a socket is not in it.",
            figures.idle_table(result["idle"], mark),
        ]
    lines = [["server", "version", "threads", "note"]]
    lines += [[mark(each["name"]), each["version"], each["threads"], each["note"]] for each in result["servers"]]
    parts += ["### The servers", figures.table(lines, "l")]
    if result["failures"]:
        failures = sorted({f"{each['server']}: {each['error']}" for each in result["failures"]})
        parts.append("No figure: " + "; ".join(failures))
    return "\n\n".join(part.strip() for part in parts) + "\n"
