"""The time, in the units the API shows. Times are kept as epoch milliseconds (int) everywhere."""

import threading
import time
from datetime import UTC, datetime

_last = 0
_lock = threading.Lock()


def now_ms() -> int:
    """Epoch milliseconds, later than any told before: what is made in turn sorts in turn."""
    global _last  # noqa: PLW0603 - a clock has one time
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1_000_000)
        return _last


def iso(ms: int | None) -> str | None:
    """`2022-08-29T08:53:47.319Z`, the form of nearly every time in the API; None stays None."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"
