"""The tokenizer of a cold-started policy: a byte-level BPE of the task's own text, and its chat template."""

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from train.coldstart.writer import WorkedExample

MAX_POSITIONS = 2048

PAD = "<pad>"
END = "<|im_end|>"
START = "<|im_start|>"
SPECIAL_TOKENS = (PAD, END, START, "<think>", "</think>")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_RARE = 20


def build_tokenizer(
    examples: Iterable[WorkedExample], vocab_size: int, system: str = ""
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the task's own text, in which each digit is a separate token.

    Merges cross spaces, so a phrase of the prompts becomes one token and a whole prompt about thirty tokens:
    on a CPU the boilerplate would otherwise cost more than the problem. Any other text can still be encoded.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        (text for example in examples for text in _texts(example, system)),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=_RARE,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _texts(example: WorkedExample, system: str) -> Iterator[str]:
    """Yields the texts of an example's prompt and completion, as the tokenizer will meet them."""
    if system:
        yield f"system\n{system}"
    for turn in example.shots:
        yield f"{turn.role}\n{turn.text}"
    yield f"user\n{example.prompt}"
    yield example.completion
