"""Formats a plan as text: memory, work, time, splits, and every assumption with its unit."""

import math
from dataclasses import asdict

from launch.plan.not_modelled import not_modelled
from launch.plan.opening import CHARACTERS_PER_TOKEN, opening_of
from launch.plan.planning import Plan
from launch.plan.splits import GIB, GpuSplit
from launch.plan.timing import StepSeconds
from launch.plan.workload import adapters_of, longest_row

UNITS = {
    "mean_question_tokens": "tokens",
    "max_question_tokens": "tokens",
    "completion_share": "of the call's limit",
    "solution_share": "of the solution's limit",
    "train_mfu": "of bf16_tflops",
    "prefill_mfu": "of bf16_tflops",
    "decode_bandwidth_share": "of bandwidth_gbps",
    "worker_activation_gib": "GiB",
    "runtime_gib": "GiB",
    "publish_gbps": "GB/s",
    "length_sigma": "of the logarithm of a length",
    "memory_gib": "GiB a GPU",
    "bf16_tflops": "TFLOP/s a GPU",
    "bandwidth_gbps": "GB/s a GPU",
    "storage_write_gbps": "GB/s from one machine",
    "storage_read_gbps": "GB/s to all machines",
}

LENGTHS = ("mean_question_tokens", "max_question_tokens", "completion_share", "solution_share")
"""Assumptions that matter without GPUs as well."""

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (fp32 master and moments)",
    "critic": "critic (weights to moments)",
    "reference": "reference of the KL term",
    "gathered": "weights gathered by ZeRO-3",
    "activations": "activations",
    "logits": "logits (one chunk)",
    "recompute": "one layer's backward",
    "step": "temporaries of the step",
}

OPTIONAL = ("critic", "reference", "gathered")
"""Parts that are left out if they are 0, since many runs do not have them."""


def plan_text(plan: Plan) -> str:
    """Returns the plan as text, its blocks separated by blank lines."""
    blocks = [_head(plan), _memory(plan), _work(plan), _time(plan), _whole(plan), _verdict(plan)]
    blocks += [_not_modelled(plan), _assumptions(plan)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _head(plan: Plan) -> list[str]:
    config, best = plan.config, plan.best
    if config.gpus:
        where = f"{config.nodes} x {config.gpus} {config.hardware.name}"
        option = f"rollout.num_workers={best.workers // config.rollout.tensor_parallel_size}"
        if config.nodes > 1:
            option = f"launch.worker_nodes={best.workers // config.gpus}"
        split = f"{best.trainer} GPUs train, {best.workers} sample ({option})"
        if config.rollout.enable_sleep_mode:
            split = "all GPUs sample, then train"
    else:
        where = "one machine without a GPU (gpus=N plans for GPUs)"
        split = f"{best.trainer} {'rank trains' if best.trainer == 1 else 'ranks train'}, "
        split += f"{best.workers} {'worker samples' if best.workers == 1 else 'workers sample'}"
    parameters = f"{plan.model.parameters / 1e6:,.1f} M parameters"
    if adapters := adapters_of(config, plan.model):
        parameters += f", {adapters / 1e6:,.1f} M in adapters"
    return [
        f"model      {config.model.path}, {parameters}, {config.model.dtype}",
        f"machines   {where}: {split}",
        f"trainer    {plan.file.path.name}: ZeRO-{plan.file.zero_stage}, gradient checkpointing: "
        f"{config.model.gradient_checkpointing}",
    ]


def _memory(plan: Plan) -> list[str]:
    best = plan.best
    memory, worker = best.trainer_memory, best.worker_memory
    device = "GPU" if plan.config.gpus else "rank"
    longest = longest_row(plan.work)
    lines = [f"memory of a trainer {device}, GiB (longest row {longest} tokens)"]
    lines += [
        f"  {label:38}{size / GIB:8.2f}"
        for name, label in PARTS.items()
        if (size := getattr(memory, name)) or name not in OPTIONAL
    ]
    limit = f" of {best.trainer_limit / GIB:.1f}" if plan.config.gpus else ""
    lines.append(f"  {'peak':38}{memory.peak / GIB:8.2f}{limit}{_mark(best.peak_fits, plan)}")
    if plan.config.gpus and math.isfinite(best.room_beside_worker):
        beside = f"{memory.static / GIB:8.2f} of {best.room_beside_worker / GIB:.1f}"
        lines.append(f"  {'held while the worker samples':38}{beside}{_mark(best.leaves_room, plan)}")
    lines.append("  peak = what is held all the time + max(gathered + activations")
    lines.append("         + max(logits, one layer's backward), temporaries of the step)")
    lines.append(f"memory of a worker{' GPU' if plan.config.gpus else ''}, GiB")
    lines.append(f"  {'weights':38}{worker.weights / GIB:8.2f}")
    if plan.config.gpus:
        lines.append(f"  {'activations, CUDA graphs':38}{worker.activations / GIB:8.2f}")
    lines.append(f"  {'KV cache':38}{worker.cache / GIB:8.2f}{_mark(best.workers_fit, plan)}")
    held = worker.tokens / best.longest_context
    lines.append(
        f"    {worker.tokens} tokens of {worker.cache_per_token} bytes: "
        f"{held:.1f} sequences of the longest kind, rollout.max_model_len"
    )
    mean = int(worker.tokens / plan.work.mean_context)
    if plan.config.gpus and 0 < mean < plan.config.rollout.max_num_seqs:
        lines.append(
            f"    {mean} sequences of mean length; rollout.max_num_seqs="
            f"{plan.config.rollout.max_num_seqs} lets more begin, of which some are cut off and read again"
        )
    return lines


def _mark(fits: bool, plan: Plan) -> str:
    return "" if fits or not plan.config.gpus else "  DOES NOT FIT"


def _work(plan: Plan) -> list[str]:
    lines = ["work of a step            calls   prompt+completion, mean tokens"]
    for calls in plan.work.calls:
        trained = ", trained" if calls.trained else ""
        shared = ", prompt shared" if calls.trained and calls.shares_prompt else ""
        lines.append(
            f"  {calls.role:22}{calls.number:8}   {calls.prompt}+{calls.completion}{trained}{shared}"
        )
    opening = opening_of(plan.config.operator.prompts)
    if opening.system or opening.examples or opening.refinements:
        lines.append(
            f"  before a question     {opening.system} tokens of system prompt, {opening.examples} of "
            f"examples, {opening.refinements} of worked refinements ({CHARACTERS_PER_TOKEN} characters each)"
        )
    work = plan.work
    lines.append(f"  read by workers       {work.prefilled / 1e6:8.2f} M tokens")
    lines.append(f"  written by workers    {work.decoded / 1e6:8.2f} M tokens")
    lines.append(
        f"  through the trainer   {work.forwarded / 1e6:8.2f} M tokens, {plan.flops / 1e15:.4g} PFLOP"
    )
    return lines


def _time(plan: Plan) -> list[str]:
    if not plan.config.gpus:
        return ["seconds of a step: not estimated on CPU"]
    lines = ["trainer:workers   prefill   decode   update  publish     step  s"]
    for split in plan.splits:
        lines.append(_time_line(split) + ("   <- best" if split is plan.best and split.fits else ""))
    if plan.shared is not None:
        share = plan.shared.gpu_memory_utilization
        lines.append(f"{_time_line(plan.shared.split)}   in turns; sleeping and waking not counted:")
        lines.append(f"    rollout.enable_sleep_mode=true rollout.gpu_memory_utilization={share:g}")
    best = plan.best.seconds
    if best is not None:
        lines.append(
            f"  decode is bound by the {best.bound}; {best.concurrency} sequences at once on a worker."
        )
        lines.append(f"  {best.stragglers:.0f} s of decode are for the longest calls (plan.length_sigma).")
        lines.append(f"  {_order(best)}")
    return lines


def _order(seconds: StepSeconds) -> str:
    if not seconds.max_staleness:
        return "Stages follow one another."
    ahead = f"collect.max_staleness={seconds.max_staleness}"
    return f"Collection runs ahead ({ahead}): a step waits for {seconds.limit}, then for publishing."


def _whole(plan: Plan) -> list[str]:
    run, config = plan.run, plan.config
    lines = [f"the whole run (train.max_steps={config.train.max_steps})"]
    if run.hours is not None and run.gpu_hours is not None:
        shown = f"{run.hours:10,.1f} h" if run.hours >= 1 else f"{60 * run.hours:10,.1f} minutes"
        lines.append(f"  {'wall time':38}{shown}")
        lines.append(f"  {'on all GPUs':38}{run.gpu_hours:10,.1f} GPU-hours")
    lines.append(
        f"  {'disk of checkpoints':38}{run.disk / GIB:10,.1f} GiB ({run.checkpoints} at once of "
        f"{run.checkpoint / GIB:,.1f} GiB, one of them being written)"
    )
    return lines


def _not_modelled(plan: Plan) -> list[str]:
    options = not_modelled(plan.config)
    if not options:
        return []
    return ["not modelled", *(f"  {option}: {effect}" for option, effect in options.items())]


def _time_line(split: GpuSplit) -> str:
    name = f"  {split.trainer}:{split.workers}"
    if not split.fits:
        who = "trainer" if not split.trainer_fits else "workers"
        return f"{name:16}  {who} out of memory"
    seconds = split.seconds
    assert seconds is not None, "workers that fit can be timed"
    parts = (seconds.prefill, seconds.decode, seconds.update, seconds.publish, seconds.total)
    return f"{name:16}" + "".join(f"{value:9.1f}" for value in parts)


def _verdict(plan: Plan) -> list[str]:
    if not plan.config.gpus:
        return []
    if plan.best.fits:
        return ["It fits.", *_cheaper(plan)]
    if not plan.fixes:
        return ["It does not fit, and none of the changes that were tried makes it fit."]
    return ["It does not fit. Each of these lines makes it fit:", *(f"  {fix}" for fix in plan.fixes)]


def _cheaper(plan: Plan) -> list[str]:
    if plan.cheaper is None or plan.best.seconds is None:
        return []
    split, seconds = plan.cheaper.split, plan.cheaper.split.seconds
    assert seconds is not None, "a split that fits has a time"
    return [
        f"It fits with less recomputation, too: {seconds.total:.1f} s a step instead of "
        f"{plan.best.seconds.total:.1f}, trainer:workers {split.trainer}:{split.workers}:",
        f"  model.gradient_checkpointing={plan.cheaper.recomputes}",
    ]


def _assumptions(plan: Plan) -> list[str]:
    measured = {item.option: item.origin for item in plan.measured}
    lines = ["assumptions (change them as options; none is a measurement of this run)"]
    for part in ("plan", "hardware"):
        for name, value in asdict(getattr(plan.config, part)).items():
            if name in UNITS and (plan.config.gpus or name in LENGTHS):
                origin = measured.get(f"{part}.{name}")
                lines.append(f"  {f'{part}.{name}={value:g}':42}{UNITS[name]}")
                lines += [f"    {origin}"] if origin else []
    if plan.config.plan.calibration and not measured:
        lines.append(f"  {plan.config.plan.calibration} holds no figure for this model and these options.")
    return lines
