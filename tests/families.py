"""Small tokenizers whose special tokens and chat templates are those of well-known families."""

from collections.abc import Sequence

from tiny import CHAT_TEMPLATE, byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MERGES = [("e", "r"), ("l", "l"), ("Ġ", "a"), ("i", "m"), (">", "Ċ"), ("Ċ", "Ċ"), ("<", "|"), ("|", ">")]

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _bytes_with(
    special: Sequence[AddedToken], template: str, *, bos: str | None = None, eos: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges; the special tokens are outside its own vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in MERGES)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(special))
    names = {} if bos is None else {"bos_token": bos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=eos, **names)
    tokenizer.chat_template = template
    return tokenizer


def _special(*texts: str, **options: bool) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False, **options) for text in texts]


def llama() -> PreTrainedTokenizerFast:
    """As Llama 3: BOS in the template, a turn's end that is not the end of sequence, reserved tokens."""
    texts = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(3))
    special = _special(*texts, *reserved)
    return _bytes_with(special, LLAMA_TEMPLATE, bos="<|begin_of_text|>", eos="<|end_of_text|>")


def phi() -> PreTrainedTokenizerFast:
    """As Phi 3: special tokens that swallow the blanks after them."""
    special = _special("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", rstrip=True)
    return _bytes_with(special, PHI_TEMPLATE, eos="<|endoftext|>")


def undeclared() -> PreTrainedTokenizerFast:
    """ChatML whose turns are opened by an added token that is not declared special, as some tunes have it."""
    added = [AddedToken("<|im_start|>", special=False, normalized=False), *_special("<|im_end|>")]
    return _bytes_with(added, CHAT_TEMPLATE, eos="<|im_end|>")


def gemma() -> PreTrainedTokenizerFast:
    """As Gemma: characters with spaces as ``▁``, bytes for the others, added tokens of line breaks alone."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    signs = [chr(code) for code in range(0x21, 0x7F)]
    tokens = [*special, "\n", "\n\n", "▁", *signs, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[list-item]
    )
    core.add_tokens([*_special(*special), AddedToken("\n\n", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """A Unigram model without bytes: special tokens are pieces of its vocabulary, rare characters none."""
    special = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = [*((token, 0.0) for token in special), *((chr(code), -5.0) for code in range(0x21, 0x7F))]
    core = Tokenizer(models.Unigram([*pieces, ("▁", -5.0), ("\n", -5.0)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


FAMILIES = {
    "chatml": byte_tokenizer,
    "llama": llama,
    "phi": phi,
    "gemma": gemma,
    "undeclared": undeclared,
    "unigram": unigram,
}
