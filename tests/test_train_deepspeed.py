"""Two real ranks under DeepSpeed against one process that does the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accumulation_rank import COPIES
from gather_rank import gradient_norms, make_run
from training_fakes import first_moments, make_config, make_trainer, read_metric
from transformers import AutoModelForCausalLM, set_seed

from configs.schema.train import ALARMS
from rollout.weights.feed import AHEAD
from rollout.workers.process_guard import end_tree
from train.checkpoint_files import finished_checkpoints
from train.distributed import make_accelerator
from train.export import export
from train.health.rollbacks import read_rollbacks

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[1]
LAUNCH_SECONDS = 300
STAGES = (2, 3)
EVERYTHING = {
    "algo": {
        "loss_type": "ppo",
        "epsilon_high": 0.2,
        "beta": 0.1,
        "entropy_coef": 0.01,
        "num_iterations": 2,
        "critic_learning_rate": 1e-3,
        "critic_warmup_steps": 1,
    }
}
"""A critic of its own, a frozen reference model, and old log-probs that are the trainer's."""


LORA = {"lora_r": 4}


def stale_lock(folder: Path) -> Path:
    """A cache of torch extensions as a killed build of DeepSpeed's shared-memory op leaves it."""
    extensions = folder / "extensions"
    (extensions / "deepspeed_shm_comm").mkdir(parents=True, exist_ok=True)
    (extensions / "deepspeed_shm_comm" / "lock").touch()
    return extensions


def launch(stage: int, run: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Two ranks that train as ``run`` says."""
    output = Path(run["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").write_text(json.dumps(run))
    return launch_script(stage, "training_rank.py", output / "run.json", output)


def launch_script(stage: int, script: str, argument: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Two ranks by ``accelerate launch``; ended with all their children if they take too long."""
    config = REPO / "launch" / "accelerate" / f"cpu_zero{stage}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(REPO / "tests" / script), str(argument)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # Where a build was killed: its lock is never let go, and who builds waits for ever.
        "TORCH_EXTENSIONS_DIR": str(stale_lock(output.parent)),
    }
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text, _ = process.communicate(timeout=LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)  # the ranks are in sessions of their own
        text, _ = process.communicate(timeout=30)
        pytest.fail(f"two ranks did not end within {LAUNCH_SECONDS} s:\n{text[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, text)


@pytest.fixture(scope="module")
def runs(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """For each ZeRO stage a run of three steps, killed at its third and resumed."""
    folders = {}
    for stage in STAGES:
        folder = tmp_path_factory.mktemp(f"zero{stage}")
        run = {"output_dir": str(folder), "model": str(tiny_policy), "changes": EVERYTHING}
        killed = launch(stage, run | {"collector": {"kill_at": 3}})
        assert killed.returncode != 0
        names = [path.name for path in finished_checkpoints(folder / "checkpoints")]
        assert names == ["step_000001", "step_000002"], killed.stdout[-4000:]
        resumed = launch(stage, run | {"changes": {"resume": "auto", **EVERYTHING}})
        assert resumed.returncode == 0, resumed.stdout[-4000:]
        folders[stage] = folder
    return folders


@pytest.fixture(scope="module")
def alone(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same three steps by one process, never killed."""
    folder = tmp_path_factory.mktemp("alone")
    config = make_config(folder, tiny_policy, **EVERYTHING)
    make_trainer(config, make_accelerator(config)).run()
    return folder


def policy(checkpoint: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(checkpoint / "policy", dtype=torch.float32)


@pytest.mark.parametrize(
    ("stage", "algo"), [(2, {}), (3, {}), (3, {"loss_type": "ppo", "critic": "policy_trunk"})]
)
def test_the_accumulated_gradient_of_two_ranks_is_that_of_one_process(stage, algo, tiny_policy, tmp_path):
    changes = {"algo": algo, "train": {"max_steps": 1}}
    run = {"output_dir": str(tmp_path / "two"), "model": str(tiny_policy), "changes": changes}
    done = launch(stage, run)
    assert done.returncode == 0, done.stdout[-4000:]
    config = make_config(
        tmp_path / "one", tiny_policy, algo=algo, train={"max_steps": 1, "tokens_per_micro_batch": 10**6}
    )
    trainer = make_trainer(config, make_accelerator(config))
    trainer.run()
    expected = first_moments(trainer)
    found = torch.load(tmp_path / "two" / "moments.pt")
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        assert moment.abs().max() > 0, name
        assert (found[name] - moment).norm() <= 1e-4 * moment.norm(), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_killed_and_resumed_makes_the_steps_of_one_that_is_not(stage, runs, alone):
    for name in ("loss", "value_loss/trace", "value_loss/refine"):
        losses, expected = read_metric(runs[stage], name), read_metric(alone, name)
        assert list(losses) == [1, 2, 3]
        for step, loss in expected.items():
            assert losses[step] == pytest.approx(loss, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("stage", STAGES)
def test_rate_betas_and_clipping_of_a_resumed_run_are_those_of_its_config(stage, tiny_policy, tmp_path):
    before = {"lr_scheduler_type": "cosine", "learning_rate": 1e-4}
    after = {**before, "learning_rate": 4e-4, "adam_beta1": 0.0, "max_grad_norm": 1e-3}
    run = {"output_dir": str(tmp_path), "model": str(tiny_policy)}
    for algo, steps, resume in ((before, 1, "none"), (after, 2, "auto")):
        changes = {"algo": algo, "train": {"max_steps": steps}, "resume": resume}
        done = launch(stage, run | {"changes": changes})
        assert done.returncode == 0, done.stdout[-4000:]
    assert read_metric(tmp_path, "learning_rate")[2] == pytest.approx(2e-4)
    # Without beta1, the first moment is the last gradient as it was clipped.
    moments = torch.load(tmp_path / "moments.pt").values()
    assert torch.stack([moment.norm() for moment in moments]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_zero_2_and_zero_3_have_the_same_losses(runs):
    second, third = read_metric(runs[2]), read_metric(runs[3])
    for step, loss in second.items():
        assert third[step] == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_an_export_of_a_sharded_checkpoint_has_the_logits_of_the_policy(stage, runs, alone, tmp_path):
    last = finished_checkpoints(runs[stage] / "checkpoints")[-1]
    out = export(last, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        logits = loaded(ids).logits
        torch.testing.assert_close(logits, policy(last)(ids).logits, atol=1e-5, rtol=0)
        # The weights of the one process differ by rounding, which AdamW amplifies where a gradient is tiny.
        reference = policy(finished_checkpoints(alone / "checkpoints")[-1])(ids).logits
    assert (logits - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_roll_back_together_and_make_the_steps_of_one_process(stage, tiny_policy, tmp_path):
    ignored = [name for name in ALARMS if name != "length_halved"]
    train = {"max_steps": 5, "on_alarm": "rollback", "ignored_alarms": ignored}
    # With gloo the ranks of ZeRO-3 lend their shards from each publish until the weights change.
    changes = {**EVERYTHING, "train": train, "rollout": {"weight_transfer": "gloo"}}
    run = {"output_dir": str(tmp_path / "two"), "model": str(tiny_policy), "changes": changes}
    done = launch(stage, run | {"collector": {"short_at": [3]}})
    assert done.returncode == 0, done.stdout[-4000:]
    config = make_config(tmp_path / "one", tiny_policy, **changes)
    make_trainer(config, make_accelerator(config), short_at=[3]).run()
    assert read_rollbacks(tmp_path / "two")[0].to_step == read_rollbacks(tmp_path / "one")[0].to_step == 2
    for name in ("loss", "learning_rate", "policy_version", "value_loss/trace"):
        found, expected = (read_metric(tmp_path / ranks, name) for ranks in ("two", "one"))
        assert list(found) == [1, 2, 3, 4, 5]
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, step)


def test_a_rank_waits_for_rank_zero_longer_than_a_collective_may_take(tiny_policy, tmp_path):
    changes = {"train": {"max_steps": 1, "collective_timeout_seconds": 25}}
    run = {"output_dir": str(tmp_path), "model": str(tiny_policy), "changes": changes}
    done = launch(2, run | {"collector": {"delay_seconds": 40}})
    assert done.returncode == 0, done.stdout[-4000:]
    assert list(read_metric(tmp_path)) == [1]


@pytest.mark.parametrize("stage", STAGES)
def test_no_rank_steps_on_what_is_not_finite_and_the_third_time_stops_the_run(stage, tiny_policy, tmp_path):
    changes = {"algo": {"loss_type": "grpo", "epsilon_high": 0.28}}
    run = {"output_dir": str(tmp_path), "model": str(tiny_policy), "changes": changes}
    done = launch(stage, run | {"collector": {"poison": True}})
    assert done.returncode != 0
    assert "not finite 3 times in a row, most recently in step 3" in done.stdout
    last = finished_checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step_000002"
    start = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32).state_dict()
    kept = policy(last).state_dict()
    assert all(torch.equal(kept[name], start[name]) for name in start)


@pytest.mark.parametrize("stage", [3])  # both stages have bfloat16 with adapters below
def test_bfloat16_follows_float32_and_keeps_its_moments_in_float32(stage, runs, tiny_policy, tmp_path):
    changes = {"model": {"dtype": "bfloat16"}, **EVERYTHING}
    run = {"output_dir": str(tmp_path), "model": str(tiny_policy), "changes": changes}
    done = launch(stage, run)
    assert done.returncode == 0, done.stdout[-4000:]
    losses = read_metric(runs[stage])
    for step, loss in read_metric(tmp_path).items():
        assert loss == pytest.approx(losses[step], rel=0.05, abs=0.03)
    moments = torch.load(tmp_path / "moments.pt")
    assert all(moment.dtype == torch.float32 and moment.any() for moment in moments.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_in_bfloat16_does_not_depend_on_the_number_of_micro_batches(stage, tmp_path):
    done = launch_script(stage, "accumulation_rank.py", tmp_path, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    one, many = json.loads((tmp_path / "norms.json").read_text())
    assert many == pytest.approx(COPIES * one, rel=1e-5)


@pytest.fixture(scope="module")
def adapted_alone(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps on LoRA adapters by one process in float32."""
    folder = tmp_path_factory.mktemp("adapted")
    config = make_config(folder, tiny_policy, model=LORA, **EVERYTHING)
    set_seed(config.seed)
    make_trainer(config, make_accelerator(config)).run()
    return folder


@pytest.mark.parametrize(("stage", "recomputes"), [*((stage, "full") for stage in STAGES), (3, "attention")])
def test_adapters_in_bfloat16_with_recomputed_activations_follow_those_of_one_process(
    stage, recomputes, adapted_alone, tiny_policy, tmp_path
):
    model = {**LORA, "dtype": "bfloat16", "gradient_checkpointing": recomputes, "cast_lm_head_to_fp32": True}
    run = {"output_dir": str(tmp_path), "model": str(tiny_policy), "changes": {"model": model, **EVERYTHING}}
    done = launch(stage, run)
    assert done.returncode == 0, done.stdout[-4000:]
    for name, least in (("loss", 0.03), ("ref_kl/trace", 1e-3)):
        found, expected = read_metric(tmp_path, name), read_metric(adapted_alone, name)
        assert found == pytest.approx(expected, rel=0.1, abs=least), name
    moments = torch.load(tmp_path / "moments.pt")
    trained = {name for name in moments if name.startswith("policy.")}
    assert trained and all("lora_" in name for name in trained)
    assert all(moment.dtype == torch.float32 for moment in moments.values())
    # What was published is the plain model, moved as far as that of the one process.
    (published,), (other,) = (list((folder / "weights").iterdir()) for folder in (tmp_path, adapted_alone))
    start, ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tiny_policy, published, other)
    )
    name = "model.layers.0.mlp.down_proj.weight"
    moved, expected = ours[name] - start[name], theirs[name] - start[name]
    assert ours.keys() == start.keys()
    assert (moved - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("changes", [{}, {"lora_r": 4, "lora_target_modules": ["lm_head", "q_proj"]}])
def test_zero_3_gathers_as_often_whatever_the_length_of_a_micro_batch(changes, tiny_policy, tmp_path):
    """The head runs in 1 to 16 chunks: a module call for each would invalidate DeepSpeed's trace."""
    run = {"output_dir": str(tmp_path / "two"), "model": str(tiny_policy), "changes": changes}
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "run.json").write_text(json.dumps(run))
    done = launch_script(3, "gather_rank.py", tmp_path / "two" / "run.json", tmp_path / "two")
    assert done.returncode == 0, done.stdout[-4000:]
    found = json.loads((tmp_path / "two" / "gathers.json").read_text())
    # DeepSpeed records its trace in the first pass and fetches ahead from the second one on.
    steady = found["gathers"][2:]
    assert len(steady) > 4 and len(set(steady)) == 1 and steady[0] > 0, found["gathers"]
    config = make_run(tmp_path / "one", str(tiny_policy), changes)
    expected = gradient_norms(config, make_accelerator(config), lambda: None)
    assert found["norms"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("model", "shards_all"), [({"dtype": "bfloat16"}, False), (LORA, True)])
def test_weights_under_zero_3_are_gathered_in_buckets_published_without_a_copy_and_read_again_bit_for_bit(
    model, shards_all, tiny_policy, tmp_path
):
    for bucket_bytes in (2**15, 2**30):
        output = tmp_path / str(bucket_bytes)
        output.mkdir()
        run = {
            "output_dir": str(output),
            "model": str(tiny_policy),
            "changes": model,
            "shards_all": shards_all,
        }
        (output / "run.json").write_text(json.dumps(run | {"bucket_bytes": bucket_bytes}))
        done = launch_script(3, "publishing_rank.py", output / "run.json", output)
        assert done.returncode == 0, done.stdout[-4000:]
        for rank in (0, 1):
            found = json.loads((output / f"rank{rank}.json").read_text())
            assert found["differing"] == []
            assert "shards could not be lent to rank 0" in found["end"]
            assert (found["sharded"] > 0) == shards_all
            # As many as the bytes ask for, whatever the number of weights: 24, of which half are small.
            most = 1 if bucket_bytes == 2**30 else 2 * found["bytes"] / bucket_bytes + 1
            assert 1 <= found["collectives"] <= most
            assert bucket_bytes == 2**30 or found["largest"] < found["bytes"]
        first = json.loads((output / "rank0.json").read_text())
        assert first["wrong"] == [] and "no longer lend" in first["after"]
        assert first["left"] == 0
        assert "did not send their shards of bucket 0 within 2 s" in first["late"]
        # Of the packed: those that wait, one in transit, one that is put. Of the gathered: this and the next.
        assert 1 <= first["packed_at_once"] <= AHEAD + 2
        assert 1 <= first["gathered_at_once"] <= 3
        assert first["buckets"] == 1 if bucket_bytes == 2**30 else first["buckets"] > AHEAD + 3
