"""Prompt texts, and the conversion of text to the token ids of one call.

The texts are in ``configs/operator/prompts``.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, cast

from configs.schema import PromptsConfig
from rollout.records import Prompt, context_key

if TYPE_CHECKING:  # plans import operators without loading torch
    from transformers import PreTrainedTokenizerBase

_PLACEHOLDERS = {
    "solve": {"question"},
    "draft": {"number", "solution"},
    "refine": {"question", "workspace"},
    "distil": {"question", "drafts", "kappa"},
    "verify": {"question", "solution"},
    "analyse": {"question", "solution"},
    "analysis": {"draft", "analysis"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTexts:
    """The seven texts, each a ``str.format`` template with fixed placeholders.

    Raises:
        ValueError: If a text lacks a placeholder or holds an unknown one.
    """

    solve: str
    draft: str
    refine: str
    distil: str
    verify: str
    analyse: str
    analysis: str

    def __post_init__(self) -> None:
        for item in fields(self):
            text = getattr(self, item.name)
            try:
                found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
            except ValueError as error:
                raise ValueError(
                    f"operator.prompts.{item.name} is not a template: {error}; write {{{{}}}} for braces."
                ) from error
            if found != _PLACEHOLDERS[item.name]:
                raise ValueError(
                    f"operator.prompts.{item.name} must hold exactly the placeholders "
                    f"{sorted(_PLACEHOLDERS[item.name])}, got {sorted(found)}; write {{{{}}}} for braces."
                )

    def solve_text(self, question: str) -> str:
        return self.solve.format(question=question)

    def refine_text(self, question: str, workspace: str) -> str:
        return self.refine.format(question=question, workspace=workspace)

    def draft_texts(self, solutions: Sequence[str]) -> list[str]:
        """Returns the drafts as a workspace holds them, numbered from 1."""
        return [self.draft.format(number=i, solution=s) for i, s in enumerate(solutions, start=1)]

    def distil_text(self, question: str, solutions: Sequence[str], kappa: int) -> str:
        drafts = join_drafts(self.draft_texts(solutions))
        return self.distil.format(question=question, drafts=drafts, kappa=kappa)

    def verify_text(self, question: str, solution: str) -> str:
        return self.verify.format(question=question, solution=solution)

    def analyse_text(self, question: str, solution: str) -> str:
        return self.analyse.format(question=question, solution=solution)

    def analysis_text(self, draft: str, analysis: str) -> str:
        """Returns the workspace of sequential refinement with error analysis."""
        return self.analysis.format(draft=draft, analysis=analysis)


def prompt_texts(config: PromptsConfig) -> PromptTexts:
    """Returns the prompt texts of a run."""
    return PromptTexts(
        solve=config.solve,
        draft=config.draft,
        refine=config.refine,
        distil=config.distil,
        verify=config.verify,
        analyse=config.analyse,
        analysis=config.analysis,
    )


def join_drafts(texts: Sequence[str]) -> str:
    """Joins the drafts of a workspace with a blank line between two."""
    return "\n\n".join(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Converts text to the ids of a chat prompt, and sampled ids to text."""

    tokenizer: "PreTrainedTokenizerBase"

    def prompt(self, text: str) -> Prompt:
        """Returns one user turn as a prompt that the policy can answer."""
        ids = self.encode_prompt(text)
        return Prompt(text=text, ids=ids, context=context_key(ids))

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Returns the ids of one user turn in the chat template; of the plain text if there is none."""
        if self.tokenizer.chat_template is None:
            return tuple(self.tokenizer(text).input_ids)
        messages = [{"role": "user", "content": text}]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return tuple(cast("Mapping[str, list[int]]", encoded)["input_ids"])

    def opens_thinking(self, mark: str) -> bool:
        """Returns True if the chat template ends with the mark that opens thinking."""
        return self.decode(self.encode_prompt("")).rstrip().endswith(mark)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of sampled ids, with thinking marks, without a final end-of-sequence token."""
        if ids and ids[-1] in self.end_ids:
            ids = ids[:-1]
        return cast("str", self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Returns the ids of ``text`` alone, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def count(self, text: str) -> int:
        """Returns the number of tokens of ``text`` alone."""
        return len(self.encode(text))

    def cut(self, text: str, max_tokens: int) -> str:
        """Returns the longest start of ``text``, up to a token border, of at most ``max_tokens`` tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        if len(ends) <= max_tokens:
            return text
        # The start alone may have more tokens than the same text within the whole, or a border may be
        # within a character: so each candidate is counted again.
        for end in reversed(ends[:max_tokens]):
            if self.count(text[:end]) <= max_tokens:
                return text[:end]
        return ""

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a completion: end of sequence and padding."""
        ids = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return frozenset(i for i in ids if isinstance(i, int))
