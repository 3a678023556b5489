"""Exit statuses that all commands share."""

REFUSED = 2
"""Invalid options."""

PREEMPTED = 75
"""The run saved a checkpoint because it was told to stop (EX_TEMPFAIL); start it again with resume=auto."""
INTERRUPTED = 130
"""Ended by Ctrl-C."""
