"""``python -m train.study``: training runs that build on one another, and one table of all results."""
