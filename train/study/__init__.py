"""``python -m train.study``: trainings that build on one another, and one table of all."""
