"""From what was measured to what is shown: medians, ratios, tables. No I/O.

A sample is one measurement: {"round", "server", "connections", ...}. Spread is told as smallest and largest, since a
few rounds carry no more than that.
"""

from __future__ import annotations

from statistics import median
from typing import Callable, Iterable

BASE = "Hawser"
"""The server that ratios are of."""

MARK_BEGIN = "<!-- peers: begin, written by bench/peers/run --write -->"
MARK_END = "<!-- peers: end -->"


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest of at least one value."""
    values = list(values)
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(values: dict[int, float], base: dict[int, float]) -> dict[str, float] | None:
    """Spread of value / base, round by round: what drifts from round to round cancels out.

    `None` when no round has both.
    """
    both = [values[at] / base[at] for at in values if base.get(at)]
    return spread(both) if both else None


def summarise(samples: list[dict], field: str, keys: tuple[str, ...]) -> list[dict]:
    """One row for each server and each value of `keys`, in the order in which they first came.

    A row has the keys, the spread of `field` and its ratio to the base's rows. The base has the same keys, except
    that its session does not have to be the same: what a peer calls idle is compared with a bare WebSocket of ours.
    """
    rows: dict[tuple, dict[int, float]] = {}
    for sample in samples:
        rows.setdefault((sample["server"], *(sample[key] for key in keys)), {})[sample["round"]] = sample[field]
    summary = []
    for (server, *values), by_round in rows.items():
        base = rows.get((BASE, *("ws" if key == "session" else value for key, value in zip(keys, values))), {})
        row = {"server": server, **dict(zip(keys, values)), "rounds": len(by_round)}
        summary.append(row | {field: spread(by_round.values()), "ratio": ratios(by_round, base)})
    return summary


def echo_table(samples: list[dict], mark: Callable[[str], str]) -> str:
    """CPU a message: a row a server, cheapest at the most connections first; three columns for each count."""
    def rows_of(field: str) -> dict[tuple[str, int], dict]:
        return {(row["server"], row["connections"]): row for row in summarise(samples, field, ("connections",))}

    cpu, rate = rows_of("cpu_us_per_message"), rows_of("messages_per_second")
    counts = sorted({connections for _, connections in cpu})
    servers = list(dict.fromkeys(server for server, _ in cpu))

    def order(server: str) -> float:
        row = cpu.get((server, counts[-1]))
        return row["cpu_us_per_message"]["median"] if row else float("inf")

    head = ["server"]
    for connections in counts:
        head += [f"{connections:,} connections: CPU a message", f"× {BASE}", "messages/s"]
    lines = [head]
    for server in sorted(servers, key=order):
        line = [mark(server)]
        for at in ((server, connections) for connections in counts):
            if at not in cpu:
                line += ["–", "–", "–"]
                continue
            line.append(f"{cell(cpu[at]['cpu_us_per_message'], '.2f')} µs")
            line.append(ratio_cell(server, cpu[at]["ratio"]))
            line.append(f"{rate[at]['messages_per_second']['median']:,.0f}")
        lines.append(line)
    return table(lines)


def idle_table(samples: list[dict], mark: Callable[[str], str]) -> str:
    """Memory a connection: a row a server and kind of session, least first."""
    rows = summarise(samples, "user_bytes_per_connection", ("session", "connections"))
    rows.sort(key=lambda row: row["user_bytes_per_connection"]["median"])
    lines = [["server", "connections", "what they are", "user bytes a connection", f"× {BASE}, bare"]]
    for row in rows:
        bytes_each = row["user_bytes_per_connection"]
        is_base = row["session"] == "ws" and row["server"] == BASE
        lines.append([
            mark(row["server"]),
            f"{row['connections']:,}",
            "bare WebSockets" if row["session"] == "ws" else f"sessions ({row['session']})",
            cell(bytes_each, ",.0f"),
            ratio_cell(BASE if is_base else "", row["ratio"], ".1f"),
        ])
    return table(lines)


def cell(of: dict[str, float], form: str) -> str:
    """`median (min to max)`."""
    return f"{of['median']:{form}} ({of['min']:{form}} to {of['max']:{form}})"


def ratio_cell(server: str, of: dict[str, float] | None, form: str = ".2f") -> str:
    """A ratio; the base's own says 1."""
    if server == BASE:
        return "1"
    return cell(of, form) if of else "–"


def table(lines: list[list[str]], align: str = "r") -> str:
    """Markdown: the first line is the head; all but the first column are aligned `l` or `r`."""
    head, *rest = lines
    rule = ["---"] + [{"l": "---", "r": "---:"}[align]] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rest]) + "\n"


def paste(text: str, section: str) -> str:
    """`text` with `section` between the two markers, or at its end with markers of its own when it has none.

    Raises ValueError when only one of them is there, or one is there twice.
    """
    begins, ends = text.count(MARK_BEGIN), text.count(MARK_END)
    block = f"{MARK_BEGIN}\n{section.strip()}\n{MARK_END}"
    if (begins, ends) == (0, 0):
        return f"{text.rstrip()}\n\n{block}\n"
    if (begins, ends) != (1, 1) or text.index(MARK_BEGIN) > text.index(MARK_END):
        raise ValueError("the markers are not there once each, in order")
    before, rest = text.split(MARK_BEGIN)
    return before + block + rest.split(MARK_END)[1]
