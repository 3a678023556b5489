"""Shifts the wall clock of a Python process by the seconds in the file ``CHAOS_CLOCK``, as it changes.

Python imports this module at start when its folder is on the path. A machine's clock cannot be set without
privileges; ``datetime.now`` is not shifted, as it reads the clock in C.
"""

import os
import time

_real, _real_ns, _steady = time.time, time.time_ns, time.monotonic
_state = {"looked": -1.0, "offset": 0.0}


def _offset() -> float:
    if _steady() - _state["looked"] > 0.1:
        _state["looked"] = _steady()
        try:
            with open(os.environ["CHAOS_CLOCK"], encoding="utf-8") as file:
                _state["offset"] = float(file.read() or 0)
        except (OSError, ValueError):
            pass
    return _state["offset"]


if "CHAOS_CLOCK" in os.environ:
    time.time = lambda: _real() + _offset()
    time.time_ns = lambda: _real_ns() + int(_offset() * 1e9)
