"""Values that compose, and that a check refuses with its reason."""

from typing import Any

import pytest
from conftest import config_with
from omegaconf import DictConfig, OmegaConf

from configs.compose import load, resolve
from configs.config_errors import ConfigError
from configs.schema.checks import has_user

NEEDED = ["model.path=x", "data.path=x"]


@pytest.fixture(scope="module")
def sound() -> DictConfig:
    """A config that passes every check; composed once, as the checks do not need Hydra."""
    return OmegaConf.structured(_training())


def _training(*overrides: str) -> Any:
    return load("training", [*NEEDED, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.dtype=float16", r"model\.dtype is 'float16'; choose one of float32, bfloat16\."),
        ("data.source=csv", r"data\.source is 'csv'; choose one of file, hf, reasoning_gym\."),
        ("data.source=hf", r"data\.name must be set when data\.source is 'hf'\."),
        ("data.source=reasoning_gym", r"data\.task must be set when data\.source is 'reasoning_gym'"),
        ("data.on_bad_gold=keep", r"data\.on_bad_gold is 'keep'; choose one of refuse, drop\."),
        ("data.num_train=0", r"data\.num_train must be at least 1, got 0\."),
        ("data.num_eval=0", r"data\.num_eval must be at least 1, got 0\."),
        ("data.num_held_out=0", r"data\.num_held_out must be at least 1, got 0\."),
        ("data.limit=0", r"data\.limit must be at least 1, got 0\."),
        (
            "data.limit=9",
            r"data\.limit is 9, but it is for evaluations .*set data\.num_train",
        ),
        (
            "data.source=reasoning_gym data.task=chain_sum data.num_held_out=99",
            r"data\.num_eval is 500, but only data\.num_held_out = 99 problems are held out",
        ),
        (
            "operator.kind=best",
            r"operator\.kind is 'best'; choose one of trace, sr, pdr, adaptive, majority, best_of_n, "
            r"genselect, or write package\.module:Class\.",
        ),
        ("operator.oracle=right", r"operator\.oracle is 'right'; choose one of only_correct, only_wrong\."),
        ("operator.quorum=0", r"operator\.quorum must lie above 0 and up to 1, got 0\.0\."),
        (
            "operator.thinking.force=now",
            r"operator\.thinking\.force must contain .*'</think>'; got 'now'\.",
        ),
        (
            "operator.kind=best_of_n operator.schedule=[4]",
            r"operator\.kind is best_of_n, .*nothing to train\.",
        ),
        ("operator.distiller=oracle", r"operator\.distiller \(or distillers\) is oracle, which knows"),
        ("operator.kind=majority operator.schedule=[4,1]", r"of majority must be \[n\].*got \[4, 1\]\."),
        (
            "rollout.thinking_tokens=4000 rollout.answer_tokens=100",
            r"rollout\.thinking_tokens \+ answer_tokens is 4100, but rollout\.max_model_len is 4096",
        ),
        (
            "operator.distiller=share_topk",
            r"operator\.distiller is 'share_topk'; choose one of global_summary, .*, oracle, or write "
            r"package\.module:function\. Did you mean 'shared_topk'\?",
        ),
        ("operator.distiller=:mine", r"operator\.distiller is ':mine'; .* write package\.module:function"),
        ("operator.top_k=0", r"operator\.top_k must be at least 1, got 0\."),
        ("operator.workspace_tokens=8", r"operator\.workspace_tokens must be at least 16, got 8\."),
        ("operator.schedule=[]", r"operator\.schedule must list widths of at least 1, got \[\]\."),
        ("operator.schedule=[0,1]", r"operator\.schedule must list widths of at least 1, got \[0, 1\]\."),
        ("operator.schedule=[8,4]", r"must end in 1.*got \[8, 4\]\. Did you mean \[8, 4, 1\]\?"),
        ("operator.schedule=[1]", r"operator\.schedule of pdr needs two rounds or more, got \[1\]\."),
        ("operator.kind=trace operator.schedule=[4,1]", r"of trace must be \[1\], got \[4, 1\]\."),
        ("operator.kind=sr operator.schedule=[2,1]", r"of sr must be \[1,1,\.\.\.\], got \[2, 1\]\."),
        ("operator.kind=sr operator.schedule=[1]", r"of sr must be \[1,1,\.\.\.\], got \[1\]\."),
        ("rewards.kind=poem", r"rewards\.kind is 'poem'; choose one of math, choice, exact, ordered_text, "),
        ("rewards.kind=custom", r"rewards\.path must name package\.module:function"),
        ("rewards.num_workers=0", r"rewards\.num_workers must be at least 1, got 0\."),
        ("rewards.limit_seconds=0", r"rewards\.limit_seconds must be at least 0\.1, got 0"),
        ("train.packing=dense", r"train\.packing is 'dense'; choose one of shared, padded\."),
        ("algo.loss_type=ppo2", r"algo\.loss_type is 'ppo2'; choose one of "),
        ("algo.advantage_estimator=gae", r"algo\.advantage_estimator is 'gae'; choose one of group_mean, "),
        ("algo.pass_k=0", r"algo\.pass_k must be at least 1, got 0\."),
        (
            "algo.advantage_estimator=pass_at_k algo.pass_k=8",
            r"algo\.pass_k is 8 and algo\.num_generations 8: the baseline",
        ),
        ("algo.scale_rewards=mean", r"algo\.scale_rewards is 'mean'; choose one of group, batch, none\."),
        ("algo.operator_fraction=1.5", r"algo\.operator_fraction must lie between 0 and 1, got 1\.5\."),
        ("algo.problems_per_step=0", r"algo\.problems_per_step must be at least 1, got 0\."),
        ("algo.num_updates=0", r"algo\.num_updates must be at least 1, got 0\."),
        ("algo.num_iterations=0", r"algo\.num_iterations must be at least 1, got 0\."),
        ("algo.beta=-0.1", r"algo\.beta must be at least 0, got -0\.1\."),
        ("algo.entropy_coef=-1", r"algo\.entropy_coef must be at least 0, got -1"),
        (
            "algo.vllm_importance_sampling_mode=icepop",
            r"algo\.vllm_importance_sampling_mode is 'icepop'; choose one of token_truncate, token_mask, ",
        ),
        ("algo.vllm_importance_sampling_clip_max=0.9", r"_clip_max are None and 0\.9; .* between them"),
        ("algo.vllm_importance_sampling_clip_min=1.1", r"_clip_max are 1\.1 and 3\.0; .* between them"),
        ("algo.critic=shared", r"algo\.critic is 'shared'; choose one of own_backbone, policy_trunk\."),
        ("algo.gamma=1.1", r"algo\.gamma must lie between 0 and 1, got 1\.1\."),
        ("algo.lam=-0.1", r"algo\.lam must lie between 0 and 1, got -0\.1\."),
        ("algo.critic_learning_rate=0", r"algo\.critic_learning_rate must be above 0, got 0"),
        ("algo.cliprange_value=0", r"algo\.cliprange_value must be above 0, got 0"),
        ("algo.vf_coef=-1", r"algo\.vf_coef must be at least 0, got -1"),
        ("algo.critic_warmup_steps=-1", r"algo\.critic_warmup_steps must be at least 0, got -1\."),
        ("algo.critic_warmup_steps=5", r"algo\.critic_warmup_steps is 5, but .* has no critic"),
        (
            "algo.loss_type=ppo algo.critic=policy_trunk algo.critic_warmup_steps=5 algo.weight_decay=0.1",
            r"algo\.weight_decay is 0\.1, which would change the policy",
        ),
        ("algo.credit=[refine,verify]", r"algo\.credit is 'verify'; choose one of refine, distil, draft\."),
        ("algo.credit=[draft]", r"algo\.credit must hold refine, the answers; got \['draft'\]\."),
        ("algo.draft_credit=best", r"algo\.draft_credit is 'best'; choose one of verdict, pass_at_k, "),
        ("algo.credit_rounds=first", r"algo\.credit_rounds is 'first'; choose one of last, all\."),
        ("algo.credit_rounds=all", r"algo\.credit_rounds is all.*add draft to algo\.credit"),
        ("algo.distil_coef=0", r"algo\.distil_coef must be above 0, got 0"),
        ("algo.draft_coef=0", r"algo\.draft_coef must be above 0, got 0"),
        ("algo.num_workspaces=3", r"algo\.num_generations is 8 and algo\.num_workspaces 3: .* divide"),
        ("algo.num_workspaces=8", r"algo\.num_workspaces is 8, as many as refinements"),
        ("algo.credit=[refine,distil]", r"algo\.num_workspaces is 1: a single distil call"),
        (
            "algo.credit=[refine,distil] algo.num_workspaces=2",
            r"only pdr with global_summary or recursive_summary writes its workspaces by a call",
        ),
        ("algo.credit=[refine,draft] operator.drafts=[1,4]", r"starts with 1 draft, which has nothing"),
        (
            "algo.credit=[refine,draft] algo.draft_credit=contribution operator.distiller=random_k",
            r"algo\.num_workspaces is 1: all answers read the same drafts",
        ),
        (
            "algo.credit=[refine,draft] algo.draft_credit=contribution algo.num_workspaces=2 "
            "operator.distiller=all",
            r"algo\.draft_credit is contribution, but all reads every draft.*such as random_k",
        ),
        (
            "algo.credit=[refine,draft] algo.draft_credit=pass_at_k algo.pass_k=4",
            r"algo\.pass_k is 4, but the operator may make only 4 drafts",
        ),
        (
            "algo.credit=[refine,draft] collect.draft_source=reuse",
            r"collect\.draft_source is reuse: only fresh drafts are trained",
        ),
        (
            "collect.draft_source=old",
            r"draft_source is 'old'; choose one of fresh, reuse, cached, reference\.",
        ),
        ("collect.draft_source=cached", r"draft_cache goes with draft_source=cached"),
        ("collect.draft_cache=a.jsonl", r"draft_cache goes with draft_source=cached"),
        (
            "collect.draft_source=reuse algo.operator_fraction=0.75",
            r"algo\.operator_fraction is 0\.75, .* at most 0\.5",
        ),
        (
            "rollout.enable_sleep_mode=true collect.max_staleness=1",
            r"workers that sleep while the trainer updates cannot collect ahead",
        ),
        ("collect.max_staleness=-1", r"collect\.max_staleness must be at least 0, got -1\."),
        ("operator.drafts=[4]", r"operator\.drafts must be two numbers .* got \[4\]; \[\] turns it off"),
        ("operator.top_k_range=[4,2]", r"operator\.top_k_range must be two numbers .* got \[4, 2\]"),
        ("operator.distillers=[best]", r"operator\.distillers is 'best'; choose one of "),
        ("operator.distillers=[all,oracle]", r"operator\.distiller \(or distillers\) is oracle, which knows"),
        (
            "operator.kind=sr operator.schedule=[1,1] operator.drafts=[2,4]",
            r"are for pdr, operator\.kind is sr",
        ),
        (
            "rollout.weight_transfer=nccl rollout.enable_sleep_mode=true",
            r"NCCL refuses two ranks on one GPU: set rollout\.weight_transfer to directory, gloo or ipc\.",
        ),
        (
            "rollout.weight_transfer=ipc",
            r"ipc needs one GPU that trainer and one local worker share: set rollout\.enable_sleep_mode=true",
        ),
        (
            "rollout.weight_transfer=ipc rollout.enable_sleep_mode=true rollout.num_workers=2",
            r"rollout\.num_workers at 1",
        ),
        (
            "rollout.max_lora_rank=16",
            r"model\.lora_r is 0: set it to 1 to 16, or rollout\.max_lora_rank to 0",
        ),
        ("rollout.max_lora_rank=8 model.lora_r=16", r"model\.lora_r is 16: set it to 1 to 8"),
        (
            "rollout.max_lora_rank=12 model.lora_r=8",
            r"rollout\.max_lora_rank is '12'; choose one of 0, 8, 16",
        ),
        (
            "rollout.max_lora_rank=8 model.lora_r=8 rollout.weight_transfer=gloo",
            r"adapters alone are published through a directory, not with rollout\.weight_transfer=gloo",
        ),
        (
            "rollout.max_lora_rank=8 model.lora_r=8 rollout.enable_sleep_mode=true",
            r"loses its weights when it sleeps, and an adapter alone does not bring them back",
        ),
        (
            "rollout.pause_mode=abort",
            r"rollout\.pause_mode is 'abort'; choose one of keep, keep_cache, wait\.",
        ),
        ("model.lora_r=-1", r"model\.lora_r must be at least 0, got -1\."),
        ("model.lora_alpha=0", r"model\.lora_alpha must be at least 1, got 0\."),
        ("algo.num_generations=1", r"algo\.num_generations must be at least 2, got 1: .*advantage 0\."),
        ("algo.learning_rate=0", r"algo\.learning_rate must be above 0, got 0"),
        ("rollout.max_completion_length=0", r"rollout\.max_completion_length must be at least 1, got 0\."),
        ("rollout.samples_per_request=0", r"rollout\.samples_per_request must be at least 1, got 0\."),
        ("rollout.tensor_parallel_size=0", r"rollout\.tensor_parallel_size must be at least 1, got 0\."),
        ("rollout.vllm_args.dtype=float16", r"rollout\.vllm_args holds dtype, which rollout\.dtype sets\."),
        (
            "rollout.vllm_args.max-model-len=9",
            r"rollout\.vllm_args holds max-model-len, which rollout\.max_model_len sets\.",
        ),
        (
            "rollout.vllm_args.no_enable_scale_out=true",
            r"holds no_enable_scale_out, which this project sets itself\. Leave it out\.",
        ),
        ("rollout.vllm_args.data_parallel_size=2", r"which rollout\.num_workers sets\."),
        ("rollout.max_concurrency=0", r"rollout\.max_concurrency must be at least 1, got 0\."),
        ("rollout.max_retries=-1", r"rollout\.max_retries must be at least 0, got -1\."),
        ("rollout.num_workers=0", r"rollout\.num_workers must be at least 1, got 0\."),
        ("rollout.num_threads=-1", r"rollout\.num_threads must be at least 0, got -1\."),
        ("rollout.port=70000", r"rollout\.port is 70000 with 1 workers: ports end at 65535\."),
        ("rollout.port=-1", r"rollout\.port must be at least 0, got -1\."),
        ("rollout.kv_cache_gib=0", r"rollout\.kv_cache_gib must be at least 1, got 0\."),
        ("rollout.max_num_seqs=0", r"rollout\.max_num_seqs must be at least 1, got 0\."),
        ("rollout.request_timeout_seconds=0", r"rollout\.request_timeout_seconds must be above 0, got 0"),
        ("rollout.start_timeout_seconds=0", r"rollout\.start_timeout_seconds must be above 0, got 0"),
        ("rollout.publish_timeout_seconds=0", r"rollout\.publish_timeout_seconds must be above 0, got 0"),
        ("rollout.urls=[localhost:8000]", r"must start with http:// or https://, got 'localhost:8000'\."),
        ("rollout.urls=[http://a] rollout.num_workers=2", r"num_workers is 2, but with rollout\.urls"),
        ("rollout.chat_url=http://a", r"rollout\.chat_model must name the model"),
        ("rollout.chat_model=m", r"rollout\.chat_model is 'm', but rollout\.chat_url is not set\."),
        ("rollout.chat_url=a rollout.chat_model=m", r"must start with http:// or https://, got 'a'\."),
        (
            "rollout.chat_url=http://a rollout.chat_model=m rollout.urls=[http://b]",
            r"Set either rollout\.urls .* or rollout\.chat_url",
        ),
        ("rollout.chat_url=http://a rollout.chat_model=m", r"rollout\.chat_url is for evaluation only"),
        ("rollout.dtype=int8", r"rollout\.dtype is 'int8'; choose one of auto, float32, bfloat16\."),
        ("rollout.max_model_len=2048", r"rollout\.max_completion_length is 2048, but .*no token is left"),
        ("rollout.temperature=-1", r"rollout\.temperature must be at least 0, got -1"),
        ("rollout.temperature=0", r"rollout\.temperature must be above 0 in training"),
        ("rollout.top_p=0.9", r"rollout\.top_p must be 1\.0 in training, got 0\.9"),
        (
            "rollout.roles.refine.top_p=0.9",
            r"rollout\.roles\.refine\.top_p must be 1\.0 in training, got 0\.9",
        ),
        ("collect.filter=pacore", r"collect\.filter is 'pacore'; choose one of none, pacore_stage1"),
        ("collect.balance=hard", r"collect\.balance is 'hard'; choose one of none, majority_wrong"),
        ("operator.draft_policy=endpoint", r"takes its drafts from another policy .*rollout\.draft_url"),
        ("operator.draft_policy=both", r"operator\.draft_policy is 'both'; choose one of own, endpoint"),
        ("operator.draft_policy=endpoint operator.quorum=0.5", r"operator\.quorum is 0\.5, .* chat endpoint"),
        ("rollout.draft_url=http://a", r"rollout\.draft_url is 'http://a' and .*: set both"),
        (
            "operator.draft_policy=endpoint rollout.draft_url=http://a rollout.draft_model=m "
            "algo.credit=[refine,draft]",
            r"algo\.credit holds draft, but operator\.draft_policy is endpoint",
        ),
        (
            "operator.draft_policy=endpoint rollout.draft_url=http://a rollout.draft_model=m "
            "collect.draft_source=reuse",
            r"collect\.draft_source is reuse, but operator\.draft_policy is endpoint",
        ),
        ("collect.draft_source=reference", r"need at least 1 such worker"),
        ("rollout.num_draft_workers=1", r"rollout\.num_draft_workers 1: .*nothing else uses one"),
        (
            "collect.draft_source=reference rollout.num_draft_workers=1 rollout.enable_sleep_mode=true",
            r"rollout\.num_draft_workers is 1, but with rollout\.enable_sleep_mode",
        ),
        ("algo.opd_coef=0.1", r"algo\.opd_coef is 0\.1, .* set collect\.draft_source=reuse"),
        ("rollout.teacher_model_server_url=http://a", r"_server_url is 'http://a', but algo\.opd_coef is 0"),
        (
            "rollout.teacher_model_server_url=http://a/v1/ algo.opd_coef=1",
            r"_server_url is 'http://a/v1/': leave out /v1",
        ),
        ("rollout.teacher_model_server_url=a algo.opd_coef=1", r"start with http:// or https://, got 'a'"),
        (
            "rollout.teacher_model_server_url=http://a algo.opd_coef=1 rollout.roles.refine.temperature=0.8",
            r"temperature of the role refine is 0\.8, but the teacher .* scores at temperature 1\. Set",
        ),
        (
            "algo.opd_coef=0.1 collect.draft_source=reuse operator.schedule=[8,1] operator.distiller=all",
            r"every workspace reads 8 of 8 traces",
        ),
        ("algo.amortise_coef=0.1 algo.operator_fraction=0", r"no operator writes answers to learn from"),
        ("rollout.roles.draft.temperature=-1", r"rollout\.roles\.draft\.temperature must be at least 0"),
        ("train.max_steps=0", r"train\.max_steps must be at least 1, got 0\."),
        ("train.save_steps=0", r"train\.save_steps must be at least 1, got 0\."),
        ("train.keep_last=0", r"train\.keep_last must be at least 1, got 0\."),
        ("train.eval_samples=0", r"train\.eval_samples must be at least 1, got 0\."),
        (
            "train.report_to=[comet]",
            r"train\.report_to is 'comet'; choose one of wandb, tensorboard, ",
        ),
    ],
)
def test_a_value_that_cannot_run_is_refused_with_its_reason(sound: DictConfig, overrides: str, message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(OmegaConf.merge(sound, OmegaConf.from_dotlist(overrides.split())))


def test_evaluation_may_chat_and_no_key_is_in_a_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    monkeypatch.setenv("VLLM_API_KEY", "a-secret")
    chatting = [*NEEDED, "rollout.chat_url=https://a/v1", "rollout.chat_model=m"]
    config = config_with("evaluation", chatting, [])
    assert config.rollout.chats
    with pytest.raises(ConfigError, match=r"rollout\.thinking_tokens is 64, .*half-written"):
        config_with("evaluation", chatting, ["rollout.thinking_tokens=64", "rollout.answer_tokens=64"])
    with pytest.raises(ConfigError, match=r"operator\.quorum is 0\.5, .*part of a draft"):
        config_with("evaluation", chatting, ["operator.quorum=0.5"])
    assert "a-secret" not in OmegaConf.to_yaml(OmegaConf.structured(config)) + repr(config)


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("rollout.urls=[http://a:1,http://me:hunter2@b:1]", "VLLM_API_KEY"),
        ("rollout.urls=['me:hunter2@b:1']", "VLLM_API_KEY"),
        ("rollout.urls=[https://hunter2@b]", "VLLM_API_KEY"),
        ("rollout.chat_url='https://me:hunter2@b/v1'", "OPENAI_API_KEY"),
        ("rollout.teacher_model_server_url='https://me:hunter2@b'", "OPENAI_API_KEY"),
        ("rollout.draft_url='https://me:hunter2@b/v1'", "OPENAI_API_KEY"),
    ],
)
def test_a_url_with_a_password_is_refused_without_being_shown(option: str, variable: str):
    with pytest.raises(ConfigError, match=rf"holds a user name or password.*{variable}\.$") as error:
        config_with("evaluation", NEEDED, [option, "rollout.chat_model=m"])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["http://a:1", "https://a/v1/@me", "http://a?to=b@c", "http://[::1]:8000"])
def test_a_url_without_a_user_has_none(url: str):
    assert not has_user(url)


def test_evaluation_may_be_greedy_but_needs_a_sample():
    config = config_with("evaluation", NEEDED, ["rollout.temperature=0", "rollout.top_p=0.9"])
    assert config.rollout.temperature == 0
    with pytest.raises(ConfigError, match=r"samples must be at least 1, got 0\."):
        config_with("evaluation", NEEDED, ["samples=0"])
    with pytest.raises(ConfigError, match=r"operators names one twice: pdr, pdr\. .*options that differ"):
        config_with("evaluation", NEEDED, ["operators=[pdr,pdr]"])
