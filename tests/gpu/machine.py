"""The card: its name and memory, and a plain matrix product, against which the update is measured."""

import time

from gpu_script import options_of, teller

SIZES = {"full": (8192, 50), "tiny": (512, 3)}
"""Rows of the square matrices, and products in one measurement."""
GIB = 2**30


def main() -> None:
    options, tell = options_of(__doc__ or ""), teller("machine")
    import torch

    on_gpu = options.device == "cuda"
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        tell("card", properties.name)
        tell("memory", properties.total_memory / GIB, "GiB")
    rows, number = SIZES[options.size]
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left, right = (torch.randn(rows, rows, device=options.device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(4):  # the first warms up
        began = time.perf_counter()
        for _ in range(number):
            torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    tell(f"plain product, {rows}^3 in {dtype}", 2 * rows**3 * number / fastest / 1e12, "TFLOP/s")


if __name__ == "__main__":
    main()
