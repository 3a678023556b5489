"""Credit assignment and losses: pure functions of rows and tensors."""
