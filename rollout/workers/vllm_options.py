"""Checks ``rollout.vllm_args`` with vLLM's own parser, in a process of its own.

vLLM's imports take seconds, and its parser ends the process that it refuses. Run as
``python -m rollout.workers.vllm_options``, with the options as JSON on standard input.
"""

import contextlib
import difflib
import io
import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

from configs.schema.vllm_args import plain_name, vllm_arguments

CHECK_SECONDS = 120.0
"""Time limit of the check: vLLM's imports take 5 to 30 s, the longer from a cold disk."""
REFUSED = 3
"""Exit status of the check if an option is refused; the reason is the last line of standard output."""
SHOWN_LINES = 5


def check_with_vllm(args: Mapping[str, Any]) -> None:
    """Checks that vLLM's command line knows the options and takes their values.

    Raises:
        ValueError: If it does not. The message names the option, and the nearest valid one.
        RuntimeError: If vLLM's parser cannot be loaded.
    """
    command = [sys.executable, "-m", "rollout.workers.vllm_options"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(args),
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"vLLM's command line was not loaded within {CHECK_SECONDS:g} s.") from None
    if done.returncode == REFUSED:
        raise ValueError(done.stdout.strip().rpartition("\n")[2])
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-SHOWN_LINES:])
        raise RuntimeError(
            f"rollout.vllm_args could not be checked: vLLM's command line did not load.\n{end}"
        )


def unknown_option(args: Mapping[str, Any], known: Collection[str]) -> str:
    """Returns why the first option that is not ``known`` is refused; empty if all are known.

    Args:
        args: ``rollout.vllm_args``.
        known: The flags of vLLM's command line, e.g. ``--kv-cache-dtype``.
    """
    names = {plain_name(flag): flag for flag in known if flag.startswith("--")}
    for name in args:
        if plain_name(name) not in names:
            near = difflib.get_close_matches(plain_name(name), names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            return f"rollout.vllm_args holds {name}, which is no option of vLLM's command line.{hint}"
    return ""


def _refusal(args: Mapping[str, Any]) -> str:
    """Returns why vLLM refuses the options; empty if it takes them."""
    # Imported here: everything else in this module is used without vLLM.
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm"))
    if refusal := unknown_option(args, parser._option_string_actions):
        return refusal
    for name, value in args.items():
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(vllm_arguments({name: value}))
        except (SystemExit, ValueError, TypeError) as error:
            lines = said.getvalue().strip().splitlines() or [str(error)]
            reason = lines[-1].removeprefix("vllm: error: ")
            return f"rollout.vllm_args.{name} is {value!r}, which vLLM refuses: {reason}"
    return ""


def main() -> int:
    """Reads options from standard input; returns 0, or ``REFUSED`` after printing why."""
    refusal = _refusal(json.loads(sys.stdin.read()))
    if refusal:
        print(refusal, flush=True)
    return REFUSED if refusal else 0


if __name__ == "__main__":
    sys.exit(main())
