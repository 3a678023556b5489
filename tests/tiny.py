"""The smallest policy that transformers and vLLM serve."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ["<pad>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token: encodes any text, needs no training."""
    vocab = {token: i for i, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(seed: int = 0, **changes: int) -> Qwen3ForCausalLM:
    """A random Qwen3 that vLLM's CPU build can serve, of two layers; ``changes`` are to its sizes."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 261,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }
    config = Qwen3Config(
        **sizes | changes, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0
    )
    return Qwen3ForCausalLM(config)


def schooled_model(answer: str, *, steps: int = 120) -> Qwen3ForCausalLM:
    """The tiny model after a few steps that teach it to say ``answer`` to whatever it is asked."""
    model = tiny_model(seed=3)
    tokenizer = byte_tokenizer()
    said = [*tokenizer.encode(answer), tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    opening = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")
    for _ in range(steps):
        asked = torch.randint(len(SPECIAL), 261, (8, 24), generator=generator)
        ids = torch.cat([asked, torch.tensor([opening + said]).expand(8, -1)], dim=1)
        labels = ids.clone()
        labels[:, : -len(said)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
