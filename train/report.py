"""Reports the progress of a run: progress bar, ``metrics.jsonl``, curves, readable rollouts, wandb."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.progress import progress_bar
from configs.schema import TrainingConfig
from rollout.records import TRACE, Rollout, call_id
from train.manifest import sync
from train.trace import CreditRecord

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"


class Reporter:
    """Writes the progress of a run to ``output_dir``. Created on rank 0 only."""

    def __init__(self, config: TrainingConfig) -> None:
        self._directory = Path(config.output_dir)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._bar: tqdm | None = None
        self._wandb: Any = None

    def start(self, step: int) -> None:
        """Starts after ``step`` finished steps, again after a rollback; drops metrics of later steps."""
        self.close()
        truncate_metrics(self._directory / METRICS_FILE, step)
        if "wandb" in self._config.train.report_to:
            self._wandb = _start_wandb(self._config)
        steps = self._config.train.max_steps
        self._bar = progress_bar(title="train", total=steps, done=step, unit="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line to ``metrics.jsonl``; it is on disk (fsync) when this returns."""
        with open(self._directory / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)
        if self._bar is not None:
            self._bar.set_postfix(_brief(metrics), refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Prints one line without breaking the progress bar."""
        tqdm.write(text)

    def write_rollouts(
        self, step: int, rollouts: Sequence[Rollout], credits: Mapping[str, CreditRecord]
    ) -> None:
        """Writes ``rollouts`` of a step as readable text to ``rollouts/step_000012.txt``.

        ``credits`` holds the rewards and advantages of credited calls, by call id.
        """
        directory = self._directory / "rollouts"
        directory.mkdir(exist_ok=True)
        text = "\n\n".join(_readable(rollout, number, credits) for number, rollout in enumerate(rollouts))
        (directory / f"step_{step:06d}.txt").write_text(text, encoding="utf-8")

    def draw(self) -> None:
        """Draws ``curves.png`` from ``metrics.jsonl``."""
        draw_curves(self._directory / METRICS_FILE, self._directory / CURVES_FILE)

    def close(self) -> None:
        """Closes the progress bar and the trackers."""
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._bar = self._wandb = None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the lines of ``metrics.jsonl``; an incomplete last line, left by a kill, is skipped."""
    if not path.exists():
        return []
    # Without a newline at its end the last line is incomplete; with one, the last element is empty.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def truncate_metrics(path: Path, step: int) -> None:
    """Drops lines after ``step``, so that a resumed run logs each step only once."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    sync(temporary)  # without it a power failure could leave an empty file under the final name
    os.replace(temporary, path)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draws rewards, accuracies, lengths and measures of stability over steps, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(metrics)
    panels = ("reward/", "accuracy/", "completion_tokens/", "entropy/", "kl/", "grad_norm", "time/", "eval/")
    figure, axes = pyplot.subplots(2, 4, figsize=(20, 8), constrained_layout=True)
    for axis, prefix in zip(axes.flat, panels, strict=True):
        names = sorted({name for line in lines for name in line if name.startswith(prefix)})
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix(prefix) or name, marker=".")
        axis.set(title=prefix.rstrip("/"), xlabel="step", visible=bool(names))
        if names:
            axis.legend(fontsize=7)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def try_login() -> None:
    """Checks the key for wandb at its server; no-op if wandb will run offline.

    Raises:
        RuntimeError: If the server refuses the key or does not answer.
    """
    import wandb
    from wandb.errors import Error

    if _wandb_mode() != "online":
        return
    try:
        wandb.login(verify=True, prompt=False)
    except Error as error:
        raise RuntimeError(
            f"train.report_to holds wandb, but the login fails: {error}. Correct WANDB_API_KEY, or set "
            "WANDB_MODE=offline, or train.report_to=[]."
        ) from error


def _start_wandb(config: TrainingConfig) -> Any:
    import wandb

    return wandb.init(project="pdr-rl", dir=config.output_dir, mode=_wandb_mode(), config=asdict(config))  # type: ignore[arg-type]


def _wandb_mode() -> str:
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    # Without a key wandb would prompt for one, and a training run must never wait for input.
    return "offline" if mode == "online" and wandb.api.api_key is None else mode


def _brief(metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the few metrics shown next to the progress bar."""
    shown = {
        "reward": metrics.get("reward"),
        "trace": metrics.get(f"accuracy/{TRACE}"),
        "operator": metrics.get("accuracy/operator"),
        "tok/s": metrics.get("tokens_per_second"),
    }
    brief = {name: f"{value:.3g}" for name, value in shown.items() if value is not None}
    if alarms := [name.removeprefix("alarm/") for name in metrics if name.startswith("alarm/")]:
        brief["ALARM"] = ",".join(alarms)
    return brief


def _readable(rollout: Rollout, number: int, credits: Mapping[str, CreditRecord]) -> str:
    lines = [f"### {rollout.problem.id} ({rollout.operator}), gold answer: {rollout.problem.answer}"]
    lines.append(rollout.problem.question)
    for place, call in enumerate(rollout.calls):
        verdict = rollout.verdicts.get(place)
        status = f", {verdict.status}" if verdict is not None else ""
        lines.append(
            f"--- call {place}: {call.role}, round {call.round}, from {list(call.parents)}, "
            f"{len(call.prompt_ids)}+{len(call.completion_ids)} tokens, {call.finish}{status}"
            f"{_credit(credits.get(call_id(number, place)))}"
        )
        lines.append(call.text)
    return "\n".join(lines)


def _credit(credit: CreditRecord | None) -> str:
    """Returns reward and advantage of a call, as the end of its line."""
    if credit is None:
        return ""
    if credit.advantage is None:
        return f", reward {credit.reward}, not trained on: {credit.dropped or 'no token'}"
    return f", reward {credit.reward}, advantage {credit.advantage:+.3g}"
