"""Tries the chat template on one question, before anything starts: a wrong prompt shows in no metric."""

from collections.abc import Iterator, Sequence
from typing import cast

from rollout.codec import PLAIN_TEXT, Codec
from rollout.turns import Turn

SHOWN_CHARACTERS = 600
"""Longest rendered prompt in an error message."""


def check_prompt(codec: Codec, path: str, shots: Sequence[Turn] = ()) -> None:
    """Checks that a prompt holds the question exactly once and leaves the turn to the policy.

    Special tokens that are spelled in a question must stay text, and at most one beginning of sequence and no
    end of sequence may be where the policy would read its own. The system prompt and the examples must be in
    the prompt as they were written.

    Args:
        codec: Converts a question as every call of the run does.
        path: ``model.path``, for the message.
        shots: The run's examples as turns, ``PromptTexts.shots`` and ``refine_shots``.

    Raises:
        ValueError: If a check fails; the message shows what was rendered.
    """
    part = "chat template"
    if codec.tokenizer.chat_template is None:
        part = "tokenizer, which has no chat template,"
    try:
        rendered = codec.render(PLAIN_TEXT)
    except Exception as error:  # a template is a program, which may raise anything
        told = (
            "with the system prompt of operator.prompts.system" if codec.system else "without a system prompt"
        )
        raise ValueError(
            f"model.path is {path!r}, whose {part} does not render a user's turn {told}: {error!r}. Change "
            "the template (tokenizer.chat_template, chat_template.jinja) or the option."
        ) from error
    _check_before(codec, path, shots)
    for problem in _problems(codec, rendered):
        ids = codec.encode_prompt(PLAIN_TEXT)
        shown = codec.tokenizer.decode(list(ids), skip_special_tokens=False)[:SHOWN_CHARACTERS]
        raise ValueError(
            f"model.path is {path!r}, whose {part} makes no prompt that the policy can answer: {problem} "
            f"The question {PLAIN_TEXT!r} became {shown!r}."
        )


def _check_before(codec: Codec, path: str, shots: Sequence[Turn]) -> None:
    """Checks that the template keeps the system prompt and the examples.

    Raises:
        ValueError: If it does not, or cannot render them.
    """
    examples = "operator.prompts.examples"
    named = [("operator.prompts.system", codec.system), *((examples, turn.text) for turn in shots)]
    try:
        rendered = codec.render(PLAIN_TEXT, shots)
    except Exception as error:
        raise ValueError(
            f"model.path is {path!r}, whose chat template does not render {examples}: {error!r}. Set it to "
            "null."
        ) from error
    for option, text in named:
        if text.strip() not in rendered:  # templates may trim a turn
            raise ValueError(
                f"model.path is {path!r}, whose chat template drops or changes a text of {option}: "
                f"{text[:SHOWN_CHARACTERS]!r}. Some templates have no system prompt, others take the "
                "thinking out of earlier turns; unset the option, or change the text or the template."
            )


def _problems(codec: Codec, rendered: str) -> Iterator[str]:
    ids = codec.encode_prompt(PLAIN_TEXT)
    if (times := rendered.count(PLAIN_TEXT) - codec.system.count(PLAIN_TEXT)) != 1:
        yield f"it holds the question {times} times, not once. Change the template."
    bos = codec.tokenizer.bos_token_id
    if bos is not None and ids[:2] == (bos, bos):
        yield f"it starts with {codec.tokenizer.bos_token!r} twice. Remove it from the template."
    if (end := _end_at_the_end(codec, ids)) is not None:
        yield (
            f"it ends with {codec.tokenizer.convert_ids_to_tokens(end)!r}, behind which the policy's turn is "
            "over. Let the template write the opening of the assistant's turn if add_generation_prompt is "
            "true, and set add_eos_token=false in tokenizer_config.json."
        )
    spelled = f"{PLAIN_TEXT} {' '.join(codec.control.spellings.values())} {PLAIN_TEXT}"
    if codec.render(spelled).count(spelled) != 1:
        yield "it drops or repeats special tokens that are spelled in a question. Change the template."
    if _turns(codec, codec.encode_prompt(spelled)) != _turns(codec, codec.frame):
        yield "special tokens that are spelled in a question stay special tokens. Change the tokenizer."


def _end_at_the_end(codec: Codec, ids: tuple[int, ...]) -> int | None:
    """Returns the last id that is no blank if it ends a turn; None if it does not."""
    decode = codec.tokenizer.decode
    last = next((i for i in reversed(ids) if cast("str", decode([i])).strip()), None)
    if last is None or last not in codec.end_ids:
        return None
    # Phi-3 lists the token that opens the assistant's turn among those that end a completion.
    opened = codec.render(PLAIN_TEXT) != codec.render(PLAIN_TEXT, add_generation_prompt=False)
    return None if opened and last in codec.stop_ids else last


def _turns(codec: Codec, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the control tokens but the unknown token, which any rare character may become."""
    return tuple(i for i in codec.control.among(ids) if i != codec.tokenizer.unk_token_id)
