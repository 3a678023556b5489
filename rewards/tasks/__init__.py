"""What is asked of an answer: one module per kind of task (``rewards.kind``), each with the same verdicts."""
