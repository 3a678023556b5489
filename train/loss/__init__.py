"""Who is credited with what, and the losses: pure functions of rows and tensors."""
