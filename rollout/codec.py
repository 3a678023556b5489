"""Conversion of text to the token ids of one call, and of sampled ids to text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from rollout.control_tokens import ControlTokens, control_tokens
from rollout.records import Prompt, context_key
from rollout.turns import Turn, rendered

if TYPE_CHECKING:  # plans import operators without loading torch
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXT = "What is 17 + 25?"
"""A text without special tokens, from which a template's own tokens are read."""
_PRIVATE_USE = range(0xE000, 0xF900)
"""Code points that no standard assigns, so that a text hardly holds them."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Converts text to the ids of a chat prompt, and sampled ids to text.

    No control token and no thinking mark arises from a text in a prompt: only the chat template writes them.
    """

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...] = ()
    """Ids that end a turn of this model besides the tokenizer's end of sequence."""
    marks: tuple[str, ...] = ()
    """Thinking marks: in a prompt they are text, also where the tokenizer has a token for them."""
    system: str = ""
    """System prompt: the first turn of every prompt. Empty: none."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template."""

    @cached_property
    def control(self) -> ControlTokens:
        """Special tokens, and those that the chat template writes."""
        return control_tokens(self.tokenizer, self._encoded([self._rendered(_plain(self._turns("")))]))

    @cached_property
    def guarded(self) -> ControlTokens:
        """Tokens that a text in a prompt cannot write: control tokens, and thinking marks of one token."""
        marks = {ids[0]: mark for mark in self.marks if len(ids := self.encode(mark)) == 1}
        return replace(self.control, spellings={**marks, **self.control.spellings})

    @cached_property
    def frame(self) -> tuple[int, ...]:
        """Guarded tokens of a prompt without examples, in order: those of the chat template around texts."""
        return self._frame(self._turns(""))

    def prompt(self, text: str, shots: Sequence[Turn] = ()) -> Prompt:
        """Returns one user turn as a prompt that the policy can answer.

        Args:
            text: The turn.
            shots: Turns between the system prompt and ``text``: ``PromptTexts.shots`` for a question that is
                put without a workspace, ``refine_shots`` for one with.
        """
        ids = self.encode_prompt(text, shots)
        return Prompt(text=text, ids=ids, context=context_key(ids), before=self._turns(text, shots)[:-1])

    def encode_prompt(self, text: str, shots: Sequence[Turn] = ()) -> tuple[int, ...]:
        """Returns the ids of a prompt in the chat template; of its plain texts if there is none.

        The control tokens are those of the template, whatever the texts hold.
        """
        turns = self._turns(text, shots)
        ids = self._encoded([self._rendered(turns)])
        if self.guarded.among(ids) == self._frame(turns):
            return ids
        # The pieces are separated by a character that the texts do not hold, so that the template can be
        # rendered around all of them at once.
        seam = next(chr(code) for code in _PRIVATE_USE if not any(chr(code) in turn.text for turn in turns))
        cut = [Turn(turn.role, seam.join(self.guarded.pieces(turn.text))) for turn in turns]
        return self._encoded(self._rendered(cut).split(seam))

    def render(self, text: str, shots: Sequence[Turn] = (), *, add_generation_prompt: bool = True) -> str:
        """Returns a prompt in the chat template, as text; its texts as paragraphs if there is no template."""
        return self._rendered(self._turns(text, shots), add_generation_prompt=add_generation_prompt)

    def _turns(self, text: str, shots: Sequence[Turn] = ()) -> tuple[Turn, ...]:
        system = (Turn("system", self.system),) if self.system else ()
        return (*system, *shots, Turn("user", text))

    def _rendered(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> str:
        return rendered(
            self.tokenizer, turns, self.template_arguments, add_generation_prompt=add_generation_prompt
        )

    def _frame(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Returns the guarded tokens that the chat template writes around texts of these roles."""
        roles = tuple(turn.role for turn in turns)
        if roles not in self._frames:
            self._frames[roles] = self.guarded.among(self._encoded([self._rendered(_plain(turns))]))
        return self._frames[roles]

    @cached_property
    def _frames(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Results of ``_frame``, by roles."""
        return {}

    def _encoded(self, parts: Sequence[str]) -> tuple[int, ...]:
        """Returns the ids of a rendered prompt whose parts are encoded one by one."""
        # A template writes BOS itself; without one, the tokenizer puts it before the first part.
        first = self.tokenizer(parts[0], add_special_tokens=self.tokenizer.chat_template is None).input_ids
        return (*first, *(i for part in parts[1:] for i in self.encode(part)))

    def opens_thinking(self, mark: str) -> bool:
        """Returns True if the chat template ends with the mark that opens thinking."""
        return self.decode(self.encode_prompt("")).rstrip().endswith(mark)

    def decode(self, ids: Sequence[int], finish: str = "") -> str:
        """Returns the text of sampled ids, with thinking marks, without the token that ended the completion.

        With ``finish`` ``stop`` any control token at the end is that token: a worker may stop at more ids
        than the model's files list.
        """
        if ids and (ids[-1] in self.end_ids or (finish == "stop" and ids[-1] in self.control.spellings)):
            ids = ids[:-1]
        return cast("str", self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Returns the ids of ``text`` alone; spelled special tokens become these tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def count(self, text: str) -> int:
        """Returns the number of tokens of ``text`` alone, without control tokens, as in a prompt."""
        ids = self.encode(text)
        if not self.guarded.among(ids):
            return len(ids)
        return sum(len(self.encode(piece)) for piece in self.guarded.pieces(text))

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the longest start of ``text``, up to a token border, of at most ``max_tokens`` tokens."""
        ends = self._ends(text)
        if len(ends) <= max_tokens:
            return text
        # The start alone may have more tokens than the same text within the whole, or a border may be
        # within a character: so each candidate is counted again.
        for end in reversed(ends[:max_tokens]):
            if self.count(text[:end]) <= max_tokens:
                return text[:end]
        return ""

    def tail(self, text: str, max_tokens: int) -> str:
        """Returns the longest end of ``text``, from a token border, of at most ``max_tokens`` tokens."""
        ends = self._ends(text)
        if len(ends) <= max_tokens:
            return text
        # As in ``cut``: the end alone may have more tokens than within the whole.
        for start in ends[-max_tokens - 1 :]:
            if self.count(text[start:]) <= max_tokens:
                return text[start:]
        return ""

    def _ends(self, text: str) -> list[int]:
        """Returns the position in ``text`` after each of its tokens, without control tokens."""
        ends: list[int] = []
        start = 0
        for piece in self.guarded.pieces(text):
            encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            ends += [start + end for _, end in encoded["offset_mapping"]]
            start += len(piece)
        return ends

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a completion: end of sequence, padding and ``stop_ids``."""
        ids = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, *self.stop_ids]
        return frozenset(i for i in ids if isinstance(i, int))


def _plain(turns: Sequence[Turn]) -> list[Turn]:
    """Returns turns of the same roles whose texts hold no special token."""
    return [Turn(turn.role, PLAIN_TEXT) for turn in turns]
