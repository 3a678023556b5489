import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from training_fakes import make_config, make_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.distributed import make_accelerator
from train.export import CARD_FILE, export, main, push

pytestmark = pytest.mark.component


@pytest.fixture
def trained(tmp_path, tiny_policy):
    config = make_config(tmp_path / "run", tiny_policy, train={"max_steps": 1})
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    return trainer


def test_an_export_has_equal_logits_and_the_chat_template(tmp_path, trained, tiny_policy):
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    command = [sys.executable, "-m", "train.export", str(checkpoint), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trained.model(ids).logits, atol=1e-5, rtol=0)
        start = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
        assert (start(ids).logits - loaded(ids).logits).abs().max() > 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_policy).chat_template
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_adapters_alone_make_of_their_model_what_the_merged_policy_is(tmp_path, tiny_policy):
    model = {"lora_r": 4, "lora_alpha": 16}
    algo = {"learning_rate": 1e-2}
    config = make_config(tmp_path / "run", tiny_policy, model=model, algo=algo, train={"max_steps": 2})
    make_trainer(config, make_accelerator(config)).run()
    adapted = AutoPeftModelForCausalLM.from_pretrained(
        export(tmp_path / "run", tmp_path / "adapter", adapter=True), dtype=torch.float32
    )
    merged = AutoModelForCausalLM.from_pretrained(
        export(tmp_path / "run", tmp_path / "merged"), dtype=torch.float32
    )
    start = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)
        assert (start(ids).logits - merged(ids).logits).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and f'from_pretrained("{tmp_path / "adapter"}")' in card
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_a_run_without_adapters_has_none_to_export(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"has no adapters.*model\.lora_r=0"):
        export(tmp_path / "run", tmp_path / "out", adapter=True)


def test_the_card_states_settings_and_results(tmp_path, trained):
    row = {"operator": "pdr", "phase": "after", "problems": 300, "samples": 1, "accuracy": 0.625}
    row |= {"ci_low": 0.5, "ci_high": 0.75, "b_seq": 1.0, "b_total": 2.0}
    (tmp_path / "run" / "report.json").write_text(json.dumps({"rows": [row]}))
    export(tmp_path / "run" / "checkpoints" / "step_000001", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| pdr | after | 300 | 62.5 [50.0, 75.0] |" in card
    assert "loss_type: cispo" in card and "1 steps" in card


def test_a_run_stands_for_its_newest_checkpoint(tmp_path, trained):
    out = export(tmp_path / "run", tmp_path / "out")
    assert "1 steps" in (out / "README.md").read_text()


def test_what_is_not_a_checkpoint_is_refused_by_name(tmp_path: Path):
    command = [sys.executable, "-m", "train.export", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "is not a whole checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_with_other_things_is_not_overwritten(tmp_path, trained):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="holds files that are not a model"):
        export(tmp_path / "run" / "checkpoints" / "step_000001", out)


def test_the_card_names_the_versions_that_made_the_policy(tmp_path, trained):
    (tmp_path / "run" / "versions.txt").write_text("torch 2.13.0\n")
    export(tmp_path / "run", tmp_path / "out")
    assert "## Versions\n\n```\ntorch 2.13.0\n```" in (tmp_path / "out" / "README.md").read_text()


def test_a_damaged_checkpoint_is_not_exported(tmp_path, trained):
    weights = tmp_path / "run" / "checkpoints" / "step_000001" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: policy/model\.safetensors is not what was written"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class FakeHub:
    """The hub's API as far as an upload needs it; ``fails`` is what it answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.fails: Exception | None = None

    def create_repo(self, repo_id: str, **options) -> str:
        self.calls.append((repo_id, options))
        if self.fails:
            raise self.fails
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options) -> None:
        self.calls.append((options.pop("repo_id"), options))


def test_an_upload_goes_to_a_private_repository_and_its_failure_says_what_to_do(tmp_path, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("train.export.HfApi", lambda: hub)
    assert push(tmp_path, "me/policy") == "https://huggingface.co/me/policy"
    (created, options), (uploaded, what) = hub.calls
    assert created == uploaded == "me/policy"
    assert options["private"] is True and what["folder_path"] == tmp_path
    hub.fails = OSError("no route to host")
    with pytest.raises(RuntimeError, match=r"not uploaded to me/policy: no route to host .*HF_TOKEN"):
        push(tmp_path, "me/policy")


def test_an_export_that_was_cut_off_has_no_card(tmp_path, trained, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = export(tmp_path / "run", tmp_path / "out")
    assert (out / CARD_FILE).is_file()
    monkeypatch.setattr("train.export._card", killed)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "run", tmp_path / "out")
    assert (out / "config.json").is_file() and not (out / CARD_FILE).exists()


def test_a_file_in_place_of_the_folder_to_write_is_refused_in_one_line(tmp_path, trained, monkeypatch):
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "run"), str(tmp_path / "a_file")])
    with pytest.raises(SystemExit, match=r"^error: .*a_file"):
        main()
