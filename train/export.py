"""``python -m train.export CHECKPOINT OUT``: exports a checkpoint, or a run's newest, as a plain HF folder.

It needs no GPU, no process group and no DeepSpeed, because every checkpoint holds the whole policy.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from configs.run_folder import CHECKPOINTS, MANIFEST
from rollout.evaluation.tables import markdown_table, percent_interval
from train.checkpoint_files import (
    ADAPTER_DIR,
    POLICY_DIR,
    TrainerState,
    finished_checkpoints,
    read_state,
    refuse_additions,
)
from train.manifest import damage, is_sealed
from train.resumed import CONFIG_FILE

CARD_FILE = "README.md"
"""Written last: a folder that has it is a whole export."""

CARD = """\
---
library_name: {library}
pipeline_tag: text-generation
base_model: {base_model}
tags: [pdr, reinforcement-learning, {loss_type}]
---

# {name}

A policy trained as an improvement operator (parallel drafts, distil, refine) from `{base_model}`:
{step} steps, {share:.0%} of the loss on the operator.

```python
{usage}
```

## Settings

```yaml
{settings}
```
{versions}{results}"""


USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{out}")
tokenizer = AutoTokenizer.from_pretrained("{out}")"""

ADAPTER_USAGE = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{out}")
tokenizer = AutoTokenizer.from_pretrained("{out}")"""


def export(checkpoint: Path, out: Path, *, adapter: bool = False) -> Path:
    """Copies the policy of ``checkpoint`` to ``out`` with a model card from its config; returns ``out``.

    If ``checkpoint`` is a run's folder, its newest whole checkpoint is used. With ``adapter``, only the LoRA
    adapters are copied.

    Raises:
        FileNotFoundError: If ``checkpoint`` is not a whole checkpoint, or has no adapters.
        ValueError: If the checkpoint is damaged, or holds files that were added later.
        FileExistsError: If ``out`` exists and is not an earlier export.
    """
    if whole := finished_checkpoints(checkpoint / CHECKPOINTS):
        checkpoint = whole[-1]
    if not is_sealed(checkpoint):
        raise FileNotFoundError(
            f"{checkpoint} is not a whole checkpoint: it has no {MANIFEST}. It must be a folder such as "
            "outputs/train/checkpoints/step_000020."
        )
    if wrong := damage(checkpoint):
        raise ValueError(f"{checkpoint} is damaged: {wrong}. Export an earlier checkpoint of the run.")
    refuse_additions(checkpoint)
    config = yaml.safe_load((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
    if adapter and not config["model"]["lora_r"]:
        raise FileNotFoundError(
            f"{checkpoint} has no adapters: the run trained the whole model (model.lora_r=0). Export it "
            "without --adapter."
        )
    own = "adapter_config.json" if adapter else "config.json"
    if out.exists() and any(out.iterdir()) and not (out / own).is_file():
        raise FileExistsError(
            f"{out} holds files that are not {'an adapter' if adapter else 'a model'}; choose an empty or a "
            "new folder."
        )
    (out / CARD_FILE).unlink(missing_ok=True)
    shutil.copytree(checkpoint / (ADAPTER_DIR if adapter else POLICY_DIR), out, dirs_exist_ok=True)
    card = _card(out, config, read_state(checkpoint), run=checkpoint.parent.parent, adapter=adapter)
    aside = out / f"{CARD_FILE}.tmp"
    aside.write_text(card, encoding="utf-8")
    os.replace(aside, out / CARD_FILE)
    return out


def push(folder: Path, repo_id: str) -> str:
    """Uploads an export to a private repository of the hub, which is created if needed; returns its URL.

    The token is that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        RuntimeError: If the hub refuses the upload or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload policy")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RuntimeError(
            f"{folder} was written, but not uploaded to {repo_id}: {error} Log in with hf auth login, or set "
            "HF_TOKEN."
        ) from error
    return str(address)


def _card(out: Path, config: dict[str, Any], state: "TrainerState", *, run: Path, adapter: bool) -> str:
    report, versions = run / "report.json", run / "versions.txt"
    settings = {key: config[key] for key in ("seed", "algo", "operator", "rollout", "data")}
    return CARD.format(
        name=out.name,
        library="peft" if adapter else "transformers",
        usage=(ADAPTER_USAGE if adapter else USAGE).format(out=out),
        base_model=config["model"]["path"],
        loss_type=config["algo"]["loss_type"],
        step=state.step,
        share=config["algo"]["operator_fraction"],
        settings=yaml.safe_dump(settings, sort_keys=False).rstrip(),
        versions=f"\n## Versions\n\n```\n{versions.read_text().rstrip()}\n```\n"
        if versions.is_file()
        else "",
        results=_results(report) if report.is_file() else "",
    )


def _results(report: Path) -> str:
    """Returns the run's evaluation as a Markdown section."""
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"]
    head = ["operator", "phase", "problems", "accuracy % [95% interval]"]
    cells = [
        [
            row["operator"],
            row["phase"],
            str(row["problems"]),
            percent_interval(row["accuracy"], row["ci_low"], row["ci_high"]),
        ]
        for row in rows
    ]
    return "\n".join(["", "## Held-out accuracy", "", *markdown_table(head, cells)]) + "\n"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="outputs/train/checkpoints/step_000020, or outputs/train"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--adapter", action="store_true", help="only the LoRA adapters, in peft's format")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="also upload the export to this private repository"
    )
    arguments = parser.parse_args()
    try:
        out = export(arguments.checkpoint, arguments.out, adapter=arguments.adapter)
        loader = "AutoPeftModelForCausalLM" if arguments.adapter else "AutoModelForCausalLM or vLLM"
        print(f"Wrote {out}: load it with {loader}.")
        if arguments.push_to_hub:
            print(f"Uploaded to {push(out, arguments.push_to_hub)}")
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
