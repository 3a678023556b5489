"""Problems in, scored groups and rollouts out: operators, workspaces, budgets, workers, publishing."""
