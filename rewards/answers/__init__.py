"""What an answer means: LaTeX, quantities, structures, and when two answers are equal."""
