"""``python -m train.coldstart``: makes a small initial policy."""
