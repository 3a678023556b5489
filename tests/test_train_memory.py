"""The metric of peak memory."""

import mmap
from pathlib import Path

import torch
from accelerate import Accelerator

from train.memory import GIB, peak_gib


def test_the_peak_grows_by_memory_that_was_touched_and_keeps_it_after_it_is_free():
    accelerator = Accelerator(cpu=True)
    before = peak_gib(accelerator)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / GIB
    size = int((before - resident + 0.25) * GIB)
    block = torch.ones(size, dtype=torch.uint8)
    during = peak_gib(accelerator)
    del block
    assert during > before + 0.2
    assert peak_gib(accelerator) > before + 0.2


def test_on_a_gpu_each_step_has_its_own_peak(monkeypatch):
    peaks, resets = iter([3 * GIB, GIB]), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(1))

    class Rank:
        device, num_processes = torch.device("cpu"), 1

    assert [peak_gib(Rank()), peak_gib(Rank())] == [3.0, 1.0]
    assert len(resets) == 2
