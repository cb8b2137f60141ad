"""The time of day, which only the rim of the system may read."""

import time


def now_ms() -> int:
    """UTC epoch milliseconds. For how long something takes, `time.monotonic`: this one may jump."""
    return time.time_ns() // 1_000_000
