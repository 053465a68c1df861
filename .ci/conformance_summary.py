"""Reads the index.json of an Autobahn run, prints a line per section, exits 1 unless all of it passed.

    conformance_summary.py INDEX.JSON [--complete]

--complete: sections 1 to 7, 10, 12 and 13 have to be there with every case that suite 25.10.1 has, so that a run
that tested nothing, or stopped half way, does not pass.
"""

import collections
import json
import sys

SECTIONS = {
    1: ("framing", 16),
    2: ("pings and pongs", 11),
    3: ("reserved bits", 7),
    4: ("opcodes", 10),
    5: ("fragmentation", 20),
    6: ("UTF-8", 145),
    7: ("close handshake", 37),
    10: ("automatic fragmentation", 1),
    12: ("deflate, kinds of payload", 90),
    13: ("deflate, kinds of offer", 126),
}
# The suite judges nothing in these: the RFC leaves the outcome open.
PASSING = ("OK", "INFORMATIONAL")

FAILURES_PRINTED_MAX = 20


def main(index_path: str, complete: bool) -> int:
    with open(index_path, encoding="utf-8") as file:
        agents = json.load(file)
    cases = next(iter(agents.values()), {})

    counts = collections.defaultdict(collections.Counter)
    failures = []
    for case, result in sorted(cases.items(), key=lambda item: [int(n) for n in item[0].split(".")]):
        verdicts = (result["behavior"], result["behaviorClose"])
        worst = next((verdict for verdict in verdicts if verdict not in PASSING), verdicts[0])
        counts[int(case.split(".")[0])][worst] += 1
        if worst not in PASSING:
            failures.append(f"  case {case}: behavior {verdicts[0]}, behaviorClose {verdicts[1]}")

    for section in sorted(set(counts) | (set(SECTIONS) if complete else set())):
        name, expected = SECTIONS.get(section, ("", 0))
        ran = counts[section].total()
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts[section].items()))
        print(f"section {section:>2} {name:<24} {ran:>3} cases: {verdicts or 'none'}")
        if complete and ran != expected:
            failures.append(f"  section {section}: {ran} cases ran, the suite has {expected}")

    passed = sum(counter[verdict] for counter in counts.values() for verdict in PASSING)
    print(f"conformance: {passed} passed, {len(cases) - passed} failed")
    for failure in failures[:FAILURES_PRINTED_MAX]:
        print(failure)
    if len(failures) > FAILURES_PRINTED_MAX:
        print(f"  and {len(failures) - FAILURES_PRINTED_MAX} more")
    return 1 if failures or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--complete" in sys.argv[2:]))
