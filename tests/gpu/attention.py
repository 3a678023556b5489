"""Attention over shared prompts: each kernel against the reference, then times of one layer.

    python tests/gpu/attention.py [--device cuda] [--size full]

Equality is that of output and gradients, relative to the reference's norm. Times are of forward and backward
of one layer of Qwen3-8B's shape, with the layout made once for 36 layers.
"""

import sys
import time
from collections.abc import Callable

from gpu_script import options_of, teller

LARGEST = {"float32": 1e-5, "bfloat16": 0.02}
"""Greatest difference relative to the norm; a card's fp32 exponentials are a little less exact (x 10)."""
LAYERS = 36
SIZES = (32, 8, 128)
"""Heads, key heads and head size of Qwen3-8B."""
TINY_SIZES = (4, 2, 16)
SHAPES = (
    (1, 8, 1),
    (16, 8, 16),
    (128, 8, 128),
    (700, 8, 300),
    (4096, 8, 1024),
    (16384, 8, 1024),
    (256, 1, 16384),
)
"""Prompt tokens, completions, tokens of each."""
TINY_SHAPES = ((1, 4, 1), (60, 4, 30))


def main() -> int:
    options, tell = options_of(__doc__ or ""), teller("attention")
    import torch

    from train.batch.rows import RowShape
    from train.model.attention_choice import SHARING, disagreement
    from train.model.attention_flex import FLEX
    from train.model.attention_varlen import VARLEN

    device = torch.device(options.device)
    tiny = options.size == "tiny"
    sizes = TINY_SIZES if tiny else SIZES
    if device.type == "cpu":
        # Torch refuses FlexAttention's gradient on a CPU, but can compute it by plain products.
        torch.nn.attention.flex_attention._validate_device = lambda *_: None
    batches = {
        "several rows": (RowShape(70, (33, 1, 90)), RowShape(5, (150,)), RowShape(130, (40, 20))),
        "one row": (RowShape(300, (140, 3, 129, 128)),),
        "single completions": (RowShape(5, (300,)), RowShape(20, (9,))),
    }
    if not tiny:
        batches["16k"] = (RowShape(12000, (1500, 900, 1600)),)
    all_agree = True
    for attention in (VARLEN, FLEX):
        for dtype in ("float32", "bfloat16"):
            if attention == VARLEN and dtype == "float32" and device.type == "cuda":
                continue  # FlashAttention has no float32
            for name, rows in batches.items():
                found = max(disagreement(attention, rows, sizes, getattr(torch, dtype), device))
                agrees = found < LARGEST[dtype] * (10 if device.type == "cuda" and dtype == "float32" else 1)
                tell(f"{SHARING[attention]}, {dtype}, {name}: difference", found)
                tell(f"{SHARING[attention]}, {dtype}, {name}: equals the reference", agrees)
                all_agree &= agrees
    for prompt, number, length in TINY_SHAPES if tiny else SHAPES:
        row = RowShape(prompt, (length,) * number)
        for attention, name in SHARING.items():
            seconds = _layer_seconds(attention, row, sizes, device)
            tell(f"{name}, prompt {prompt}, {number} x {length}: forward and backward", 1e3 * seconds, "ms")
    return int(not all_agree)


def _layer_seconds(attention: str, row, sizes: tuple[int, int, int], device) -> float:
    """Seconds of one layer, in bfloat16 on a GPU."""
    import torch

    from train.model.attention_choice import ATTENTIONS, LAYOUTS

    heads, key_heads, size = sizes
    length = row.prompt + sum(row.completions)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (
        torch.randn(1, count, length, size, device=device, dtype=dtype, requires_grad=True)
        for count in (heads, key_heads, key_heads)
    )
    layers = LAYERS if device.type == "cuda" else 2
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def run() -> None:
        layout = LAYOUTS[attention]((row,), length, device) if attention in LAYOUTS else None
        for _ in range(layers):
            out, _ = ATTENTIONS[attention](
                torch.nn.Identity(), query, key, value, None, rows=(row,), layout=layout
            )
            torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
        synchronise()

    run()  # compiles
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / layers


if __name__ == "__main__":
    sys.exit(main())
