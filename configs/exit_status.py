"""Exit statuses that all commands share."""

REFUSED = 2
"""Exit status: invalid options."""

PREEMPTED = 75
"""Exit status: stopped on request after saving (EX_TEMPFAIL). Resume with resume=auto."""
INTERRUPTED = 130
"""Exit status: ended by Ctrl-C."""
