"""Options of vLLM's command line: checked by its own parser before a worker starts."""

import inspect

import pytest

from configs.schema.vllm_args import FIXED, SET_BY
from rollout.workers import vllm_options
from rollout.workers.local_worker import LocalWorker
from rollout.workers.vllm_options import check_with_vllm, unknown_option

KNOWN = ("--kv-cache-dtype", "--quantization", "-q", "--enable-prefix-caching", "--no-enable-prefix-caching")


@pytest.mark.parametrize("name", ["kv_cache_dtype", "kv-cache-dtype", "enable_prefix_caching"])
def test_a_known_option_passes(name: str):
    assert unknown_option({name: 1}, KNOWN) == ""


def test_an_unknown_option_is_refused_with_the_nearest():
    said = unknown_option({"quantization": "fp8", "kv_cache_dtypo": "fp8"}, KNOWN)
    assert said == (
        "rollout.vllm_args holds kv_cache_dtypo, which is no option of vLLM's command line. "
        "Did you mean kv_cache_dtype?"
    )
    assert unknown_option({"zzz": 1}, KNOWN).endswith("command line.")
    assert "holds q," in unknown_option({"q": "fp8"}, KNOWN)  # not by a single letter


@pytest.mark.component
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"kv_cache_dtypo": "fp8"}, r"no option of vLLM's command line\. Did you mean kv_cache_dtype\?"),
        (
            {"kv_cache_dtype": "fp9"},
            r"kv_cache_dtype is 'fp9', which vLLM refuses: .*invalid choice",
        ),
    ],
)
def test_vllm_itself_says_what_it_does_not_take(args: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        check_with_vllm(args)


@pytest.mark.component
def test_vllm_itself_takes_what_the_schema_documents():
    check_with_vllm(
        {
            "kv_cache_dtype": "fp8",
            "quantization": "fp8",
            "attention_backend": "TRITON_ATTN",
            "max_num_batched_tokens": 16384,
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
            "enable_prefix_caching": False,
            "cudagraph_capture_sizes": [1, 2, 4],
        }
    )


@pytest.mark.component
def test_what_is_refused_by_name_is_what_vllm_has_and_what_the_worker_sets():
    """Each name exists, and each option of the worker's command is refused, but for limits that may rise."""
    with pytest.raises(ValueError, match="no option of vLLM"):
        check_with_vllm({"zzz": 1})
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = make_arg_parser(FlexibleArgumentParser())._option_string_actions
    assert [name for name in (*SET_BY, *FIXED) if f"--{name.replace('_', '-')}" not in flags] == []
    source = inspect.getsource(LocalWorker._command)
    own = {
        flag.removeprefix("--no-").removeprefix("--").replace("-", "_")
        for flag in flags
        if f'"{flag}"' in source
    }
    assert own - {*SET_BY, *FIXED} == {"max_num_batched_tokens", "enable_chunked_prefill"}


@pytest.mark.component
def test_a_parser_that_does_not_load_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_options.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="vLLM's command line did not load"):
        check_with_vllm({"quantization": "fp8"})
