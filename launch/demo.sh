#!/usr/bin/env bash
# The demo: cold start, training with evaluation before and after, export. Run by `make demo`.
# Each stage skips what is done already; arguments are passed on as further overrides.
set -euo pipefail

out=outputs/demo
files=$(python -c 'import launch, pathlib; print(pathlib.Path(launch.__file__).parent / "accelerate")')
stages=()

stage() { # stage NAME COMMAND...: runs the command and records its duration
  local name=$1 from=$SECONDS
  shift
  echo "== $name"
  "$@"
  stages+=("$name: $((SECONDS - from)) s")
}

stage "cold start" python -m train.coldstart experiment=demo "$@"
stage "training and evaluation" accelerate launch --config_file "$files/cpu_zero2.yaml" \
  -m train experiment=demo resume=auto "$@"
stage "export" python -m train.export "$out" "$out/export"

echo "== time (installation not included)"
printf '%s\n' "${stages[@]}" "total: $SECONDS s"
cat <<END
== output
$out/report.md           the table above; report.json holds the same as JSON
$out/curves.png          reward and accuracy by step
$out/metrics.jsonl       every metric of every step
$out/rollouts/           a few rollouts as text
$out/evaluation/         every evaluated rollout: its graph of calls, ids, budgets, verdicts
$out/checkpoints/        checkpoints to resume from
$out/export/             the trained policy, a plain Hugging Face folder
END
