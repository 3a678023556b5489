"""Exit statuses that all commands share."""

ALARM = 1
"""Exit status: an alarm on the run's metrics ended it (train.on_alarm)."""
REFUSED = 2
"""Exit status: invalid options."""

PREEMPTED = 75
"""Exit status: stopped on request with nothing left to save (EX_TEMPFAIL). Resume with resume=auto."""
INTERRUPTED = 130
"""Exit status: ended at once by a second request, Ctrl-C; what was not saved yet is lost."""
