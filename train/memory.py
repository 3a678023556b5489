"""The metric of peak memory."""

from pathlib import Path

import torch
from accelerate import Accelerator

from train.distributed import max_over_ranks

GIB = 2**30
KIB_PER_GIB = 2**20


def peak_gib(accelerator: Accelerator) -> float:
    """Returns the peak memory of the rank that used most, in GiB. Every rank must call it.

    On a GPU: what torch has allocated at once since the previous call. On a CPU: resident memory of the
    process since its start, for the kernel keeps one peak only.
    """
    peak = _allocated_since() if torch.cuda.is_available() else _resident_peak()
    return float(max_over_ranks(accelerator, torch.tensor(peak, device=accelerator.device)))


def _allocated_since() -> float:
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def _resident_peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / KIB_PER_GIB
    )
