"""Exit statuses that commands agree on."""

REFUSED = 2
"""Of a command whose options are no good."""

PREEMPTED = 75
"""Of a run that saved because it was told to stop (EX_TEMPFAIL): start it again with resume=auto."""
INTERRUPTED = 130
"""Of a command that was ended by Ctrl-C."""
