"""Operators on a data set: journal of rollouts, measures against token budgets, report and pictures."""
