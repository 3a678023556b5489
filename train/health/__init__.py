"""``python -m train.health``: named alarms on a run's metrics, and the run's response to them."""
