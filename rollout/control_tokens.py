"""Control tokens: those by which a chat template opens and closes turns, and all other special tokens.

A tokenizer turns the spelling of a special token into that token wherever it occurs, also in a question or a
draft. Such a text is cut inside every spelling, and the pieces are encoded one by one: it stays text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # plans import operators without loading torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokens:
    """The control tokens of a tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    spellings: Mapping[int, str]
    """Spelling of each control token, by its id."""

    def among(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns the ids that are control tokens, in their order."""
        return tuple([i for i in ids if i in self.spellings])

    def pieces(self, text: str) -> list[str]:
        """Cuts ``text`` so that no control token arises when each piece is encoded by itself.

        Raises:
            ValueError: If a control token is a single character, which cannot be cut.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = cast("list[int]", encoded["input_ids"])
        spans = cast("list[tuple[int, int]]", encoded["offset_mapping"])
        cuts = [
            start + self._cut(i, text[start:end])
            for i, (start, end) in zip(ids, spans, strict=True)
            if self._is_spelled(i, text[start:end])
        ]
        if not cuts:
            return [text]
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        # A part may hold a spelling that overlapped the one that was cut.
        return [piece for part in parts for piece in self.pieces(part)]

    def _is_spelled(self, token_id: int, span: str) -> bool:
        if token_id not in self.spellings or not span.strip():
            return False
        # A character outside the vocabulary is unknown too, and no control.
        return token_id != self.tokenizer.unk_token_id or span.strip() == self.spellings[token_id]

    def _cut(self, token_id: int, span: str) -> int:
        """Returns a place inside the spelling; a span may include spaces around it."""
        if len(span.strip()) < 2:
            raise ValueError(
                f"The text holds {span!r}, which the tokenizer can encode only as its special token "
                f"{self.spellings[token_id]!r} ({token_id}). Remove it from the text, or declare the token "
                "with special=false in tokenizer.json."
            )
        return len(span) - len(span.lstrip()) + 1


def control_tokens(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int]) -> ControlTokens:
    """Returns the special tokens of ``tokenizer``, and the added tokens that its chat template writes.

    Args:
        tokenizer: A fast tokenizer.
        prompt_ids: A prompt that holds no special token but those of the template. Some tokenizers do not
            declare the tokens around a turn as special.
    """
    written = set(prompt_ids)
    added = cast("Mapping[int, object]", tokenizer.added_tokens_decoder)
    spellings = {i: str(t) for i, t in added.items() if getattr(t, "special", False) or i in written}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    spellings |= dict(named)
    # Added tokens of blanks alone (Gemma) stand in any text and open no turn.
    return ControlTokens(
        tokenizer=tokenizer, spellings={i: text for i, text in spellings.items() if text.strip()}
    )
