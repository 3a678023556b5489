"""Keeps off the screen what libraries remark about circumstances that are meant to be so."""

import logging

REMARKS = {
    "DeepSpeed": "Setting accelerator to CPU",
    "accelerate.utils.other": "Removed shared tensor",  # tied embeddings
}
"""Logger -> a part of the one message that is dropped; its other messages, errors above all, are shown."""


def drop_remarks() -> None:
    """Drops ``REMARKS`` in this process; to be called before the libraries are imported."""
    for name, text in REMARKS.items():
        logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())
