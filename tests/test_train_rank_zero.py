"""Rank 0's side of a run: what is checked before any worker starts."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from configs.compose import load
from train.origin import load_run_data
from train.rank_zero import assemble, warn_if_quantized


@pytest.mark.parametrize("option", ["data.path", "data.eval_path"])
def test_unusable_data_ends_a_training_before_any_worker_starts(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[object] = []
    monkeypatch.setattr("train.rank_zero.RolloutEngine", lambda *arguments: started.append(arguments))
    sound, bad = tmp_path / "sound.jsonl", tmp_path / "bad.jsonl"
    sound.write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    bad.write_text('{"question": [{"role": "user"}], "answer": "2"}\n')
    paths = {"data.path": sound, "data.eval_path": sound} | {option: bad}
    overrides = [f"{name}={path}" for name, path in paths.items()]
    config = load("training", ["model.path=x", f"output_dir={tmp_path / 'run'}", *overrides])
    with ExitStack() as stack, pytest.raises(ValueError, match=r"bad\.jsonl line 1: Its field 'question'"):
        assemble(config, [], load_run_data(config, None), stack)
    assert not started


@pytest.mark.parametrize(
    ("overrides", "warns"),
    [
        (["rollout.vllm_args.quantization=fp8"], "quantization=fp8: samples are those of another policy"),
        (["rollout.vllm_args.kv_cache_dtype=fp8"], "kv_cache_dtype=fp8: samples"),
        (["rollout.vllm_args.kv_cache_dtype=auto"], ""),
        (["rollout.vllm_args.max_num_batched_tokens=9"], ""),
        (["rollout=fp8"], ""),
        ([], ""),
    ],
)
def test_rounded_samples_without_a_correction_are_warned_of(
    overrides: list[str], warns: str, caplog: pytest.LogCaptureFixture
):
    warn_if_quantized(load("training", ["model.path=x", "data.path=x", *overrides]))
    assert warns in caplog.text
    assert bool(caplog.text) == bool(warns)
