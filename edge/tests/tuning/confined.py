"""Runs a command as a systemd unit would confine it.  confined.py UNIT COMMAND...

Takes from the unit: SystemCallFilter (groups as `systemd-analyze syscall-filter` lists them), RestrictAddressFamilies,
MemoryDenyWriteExecute, LimitNOFILE, LimitMEMLOCK, CapabilityBoundingSet, NoNewPrivileges. Namespaces (the Protect and
Private lines) are left out. Needs Debian's python3-seccomp, and root for the bounding set.
"""
import ctypes
import os
import resource
import socket
import subprocess
import sys

import seccomp

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_MDWE = 38, 24, 65
CAP_SETPCAP = 8
# SystemCallFilter= always allows this one (systemd.exec(5)).
IMPLIED = "@default"

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option, argument):
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def settings(path):
    """The unit's lines, as name and value, in their order."""
    with open(path, encoding="utf-8") as unit:
        lines = [line.strip() for line in unit if "=" in line and not line.startswith("#")]
    return [tuple(line.split("=", 1)) for line in lines]


def calls_of(name):
    """The system calls of a group such as @aio; a plain name stands for itself."""
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", name]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    members = [line.strip() for line in listed[1:]]
    calls = [calls_of(member) for member in members if member and not member.startswith("#")]
    return set().union(*calls)


def allowed(unit):
    calls = calls_of(IMPLIED)
    for name, value in unit:
        if name != "SystemCallFilter":
            continue
        named = set().union(*(calls_of(word) for word in value.lstrip("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    return calls


def filter_calls(unit):
    calls = seccomp.SyscallFilter(seccomp.ERRNO(1))
    families = dict(unit).get("RestrictAddressFamilies", "").split()
    for name in sorted(allowed(unit)):
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number < 0:
            continue  # A call of other architectures.
        if name != "socket":
            calls.add_rule(seccomp.ALLOW, number)
            continue
        for family in families:
            argument = seccomp.Arg(0, seccomp.EQ, getattr(socket, family))
            calls.add_rule(seccomp.ALLOW, number, argument)
    calls.load()


def amount(value):
    for suffix, factor in (("K", 1 << 10), ("M", 1 << 20)):
        if value.endswith(suffix):
            return int(value[:-1]) * factor
    return int(value)


def limit(what, value):
    # Not above what this machine lets anybody have.
    most = resource.getrlimit(what)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(what, (value, value))


def confine(path):
    unit = settings(path)
    one = dict(unit)
    limit(resource.RLIMIT_NOFILE, amount(one["LimitNOFILE"]))
    limit(resource.RLIMIT_MEMLOCK, amount(one["LimitMEMLOCK"]))
    if os.geteuid() == 0 and one["CapabilityBoundingSet"] == "":
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
            capabilities = [number for number in range(int(last.read()) + 1) if number != CAP_SETPCAP]
        for capability in [*capabilities, CAP_SETPCAP]:
            prctl(PR_CAPBSET_DROP, capability)
    if one["NoNewPrivileges"] == "yes":
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    if one["MemoryDenyWriteExecute"] == "yes":
        prctl(PR_SET_MDWE, 1)
    filter_calls(unit)


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])
