"""Processor time that running processes have taken, from /proc; nothing on systems without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields after the name, see proc(5)


def used_s(pid: int) -> float | None:
    """Seconds that a process has used, all its threads together; None if that is not to be known."""
    fields = _fields(pid)
    return None if fields is None else (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def children(name: str) -> list[int]:
    """Processes of that name that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        pid = int(path.parent.name)
        fields = _fields(pid)
        if fields is not None and int(fields[_PARENT]) == os.getpid() and path.read_text().strip() == name:
            found.append(pid)
    return found


def _fields(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:  # it has ended, or this is no Linux
        return None
