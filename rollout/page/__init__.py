"""The run page: one self-contained HTML file that shows an evaluation or a training run."""
