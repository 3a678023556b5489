"""How the trainer packs its rows; ``launch.plan`` counts with it."""

SHARE_FROM = 0.1
"""A group shares its prompt when that saves at least this share of its tokens; below, attending to each
completion by itself costs more than it saves."""

HEAD_CHUNK_BYTES = 512 * 2**20
"""Of the fp32 logits of the trained tokens that go through the LM head at once."""
