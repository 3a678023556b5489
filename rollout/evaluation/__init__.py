"""Evaluation of operators on a data set: journal, measures against token budgets, report and pictures."""
