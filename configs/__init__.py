"""Hydra's config root (``pkg://configs``) and the typed schema of all options."""
