"""What a prompt holds before its question: tokens of the system prompt and of the examples.

A plan loads no tokenizer, so they are estimated from characters.
"""

from dataclasses import dataclass

from configs.examples import read_examples
from configs.schema import PromptsConfig

CHARACTERS_PER_TOKEN = 4
"""Of English text, for tokenizers with a large vocabulary."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Estimated tokens before a question."""

    system: int
    """Tokens of the system prompt, which every call reads."""
    examples: int
    """Tokens of the examples without drafts, which calls read that have no workspace."""
    refinements: int
    """Tokens of the examples with drafts, which refinements read."""

    def of(self, role: str, round: int) -> int:
        """Returns the tokens before the question of a call."""
        if role == "refine" or (role == "draft" and round > 0):
            return self.system + self.refinements
        return self.system + (self.examples if role in ("trace", "draft") else 0)


def opening_of(prompts: PromptsConfig) -> Opening:
    """Returns the opening of a run's prompts.

    Raises:
        ValueError: If the examples cannot be read (``read_examples``).
    """
    plain = refined = 0
    for each in read_examples(prompts.examples):
        characters = len(each.question) + len(each.answer)
        if each.drafts:
            drafts = sum(len(prompts.draft) + len(draft) for draft in each.drafts)
            refined += len(prompts.refine) + drafts + characters
        else:
            plain += len(prompts.solve) + characters
    return Opening(system=_tokens(len(prompts.system)), examples=_tokens(plain), refinements=_tokens(refined))


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
