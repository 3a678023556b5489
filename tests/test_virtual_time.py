"""The clock of simulations."""

import asyncio
import time

import pytest
from virtual_time import run_virtually


def test_a_day_passes_at_once_and_timers_fire_in_order():
    async def work() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def after(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, asyncio.get_running_loop().time()))

        await asyncio.gather(after("late", 86_400.0), after("soon", 0.5), after("soon too", 0.5))
        return seen

    began = time.monotonic()
    assert run_virtually(work()) == [("soon", 0.5), ("soon too", 0.5), ("late", 86_400.0)]
    assert time.monotonic() - began < 5


def test_a_limit_ends_what_never_would():
    async def work() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 60)
        return asyncio.get_running_loop().time()

    assert run_virtually(work()) == 60


def test_a_deadlock_is_an_error():
    with pytest.raises(RuntimeError, match="no timer will bring"):
        run_virtually(asyncio.Event().wait())
