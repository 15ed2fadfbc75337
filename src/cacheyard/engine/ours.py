"""Which processes are cacheyard's own: those of a group id that nobody else has.

The kernel's filter must tell a replica that follows its master, or cacheyard asking a server how it is,
from a tenant's client, and on one machine all of them may come from 127.0.0.1. So whatever serves a yard
runs in the group `GROUP`: cacheyard takes it when it starts, and all that it starts inherits it. Only who
may change groups (root, CAP_SETGID) can do the same.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

# No account of a usual system has it: systemd, whose table of ids everybody goes by, leaves 60578 to 61183
# unused; and it is below 65536, so that containers which have as many ids have it too.
GROUP = 60765


def join() -> bool:
    """Have this process be one of ours; whether it is. Without the right to it all but filtering works."""
    with suppress(OSError):
        os.setresgid(GROUP, GROUP, GROUP)
    return joined()


def may_join() -> bool:
    """Whether this process could be; it stays what it is."""
    try:
        subprocess.run(["/bin/sh", "-c", ":"], group=GROUP, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def joined() -> bool:
    """Whether this process is one of ours."""
    return os.getresgid() == (GROUP, GROUP, GROUP)


def is_ours(pid: int) -> bool:
    """Whether that process is; one that has ended is not in the way."""
    try:
        return _in_group(Path(f"/proc/{pid}/status").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return True


def pids() -> list[int]:
    """All processes that are, those of other yards among them."""
    found = []
    with os.scandir("/proc") as entries:
        names = [entry.name for entry in entries if entry.name.isdigit()]
    for name in names:
        with suppress(OSError):  # it has just ended
            if _in_group(Path(f"/proc/{name}/status").read_bytes()):
                found.append(int(name))
    return found


def _in_group(status: bytes) -> bool:
    start = status.index(b"\nGid:")
    return set(status[start : status.index(b"\n", start + 1)].split()[1:]) == {str(GROUP).encode()}
