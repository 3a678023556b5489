"""From problems to scored groups, for training: a stream of problems, groups, batches ahead, replay."""
