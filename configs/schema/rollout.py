"""Sampling, and the workers that sample."""

from dataclasses import dataclass, field, fields
from typing import Any

from configs.schema.checks import above, at_least, choice, has_user, share
from configs.schema.roles import RoleConfig, RolesConfig
from configs.schema.vllm_args import check_vllm_args

WITHOUT_EFFECT = (
    "urls",
    "num_workers",
    "draft_url",
    "teacher_model_server_url",
    "num_draft_workers",
    "host",
    "port",
    "max_concurrency",
    "samples_per_request",
    "max_retries",
    "request_timeout_seconds",
    "start_timeout_seconds",
    "publish_timeout_seconds",
    "pause_mode",
    "weight_transfer",
    "max_num_seqs",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "enable_sleep_mode",
    "num_threads",
    "tensor_parallel_size",
)
"""Options that may change when a run is resumed: they affect where and how fast it samples, not what."""

LORA_RANKS = ("0", "8", "16", "32", "64", "128", "256", "320", "512")
"""0, and the ranks that vLLM has kernels for."""


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling, and the vLLM workers that sample."""

    urls: list[str] = field(default_factory=list)
    """URLs of vLLM servers to use, with VLLM_API_KEY of the environment as key. Empty: start local
    workers."""

    num_workers: int = 1
    """Local workers to start if ``urls`` is empty. They share the cores on CPU; on GPUs each has
    ``tensor_parallel_size`` of its own."""

    tensor_parallel_size: int = 1
    """GPUs of each local worker, over which its weights and KV cache are split."""

    chat_url: str = ""
    """URL of an OpenAI-compatible chat endpoint to evaluate, e.g. https://api.openai.com/v1, with the
    environment's OPENAI_API_KEY as key. ``model.path`` then only names the tokenizer that counts tokens."""

    chat_model: str = ""
    """Name of the model at the endpoint ``chat_url``."""

    draft_url: str = ""
    """URL of an OpenAI-compatible chat endpoint that writes the drafts of operators with
    draft_policy=endpoint, e.g. http://127.0.0.1:8000/v1, with the environment's OPENAI_API_KEY as key."""

    draft_model: str = ""
    """Name of the model at the endpoint ``draft_url``."""

    teacher_model_server_url: str = ""
    """Base URL (without /v1) of a vLLM server of another model, the teacher of algo.opd_coef, with the
    environment's OPENAI_API_KEY as key. It scores every trained sample, so its tokenizer must be the
    policy's. TRL's name. Empty: the policy is its own teacher."""

    num_draft_workers: int = 0
    """Further local workers that keep the weights of model.path, for collect.draft_source=reference."""

    temperature: float = 1.0
    """Sampling temperature; 0 is greedy (evaluation only)."""
    top_p: float = 1.0
    """Nucleus sampling. With any value but 1, the sampler's log-probs do not describe the trained policy."""

    max_completion_length: int = 2048
    """Limit of the tokens that one call may write, thinking included. Not used with thinking_tokens."""

    thinking_tokens: int = 0
    """Thinking that is still open after this many tokens is closed by force. 0: no separate limit."""

    answer_tokens: int = 2048
    """With thinking_tokens: limit of the tokens that a call may write after its thinking."""

    roles: RolesConfig = field(default_factory=RolesConfig)
    """Other temperature, top_p or thinking_tokens for the calls of one role, e.g. roles.draft.temperature."""

    max_concurrency: int = 512
    """Sequences in flight at once, over all workers: above max_num_seqs of all together, so that some wait at
    each worker. With chat_url: requests in flight."""

    samples_per_request: int = 8
    """Samples of one context that one request to a worker may ask for. Their seeds do not depend on it. Fewer
    samples spread a group over more workers, and less is lost with a request."""

    request_timeout_seconds: float = 600.0
    """Time limit of one request, and of the wait that an endpoint may ask for (Retry-After)."""

    max_retries: int = 5
    """How often a request is sent again after a broken connection, a timeout, a 429 or a 5xx."""

    start_timeout_seconds: float = 300.0
    """Time limit for the first answer of a local worker, and for the return of a broken worker of
    ``urls``."""

    publish_timeout_seconds: float = 300.0
    """Time limit for publishing weights to a worker."""

    weight_transfer: str = "directory"
    """How weights reach the workers: directory (a folder that all can read), nccl (between GPUs), gloo
    (through host memory) or ipc (on one GPU that trainer and one local worker share). nccl and gloo need no
    shared disk, but workers must be able to reach the trainer. nccl and ipc were not run on a GPU."""

    max_lora_rank: int = 0
    """Largest rank of the LoRA adapter that workers serve beside the model: 8, 16, 32, 64, 128, 256, 320 or
    512. If above 0, training with model.lora_r publishes the adapter alone; 0: merged into the weights."""

    pause_mode: str = "keep"
    """Requests in flight during publishing: keep (they continue with the new weights, which compute their
    keys and values again), keep_cache (they continue, and their keys and values and the prefix cache stay
    those of the old weights) or wait (they are finished first, with the old weights)."""

    host: str = "127.0.0.1"
    """Address that local workers listen on. Requests from other machines need VLLM_API_KEY."""

    port: int = 0
    """Port of the first local worker; the others use the next ones. 0: free ports."""

    dtype: str = "auto"
    """Precision of local workers: auto (the model's), float32 or bfloat16."""

    cast_lm_head_to_fp32: bool = False
    """Keep the logits of local workers in float32. Turned on by model.cast_lm_head_to_fp32, so that worker
    and trainer round alike; a worker at rollout.urls needs it where it is started."""

    max_model_len: int = 4096
    """Limit of prompt plus completion tokens in a local worker."""

    max_num_seqs: int = 256
    """Sequences that a local worker decodes at once."""

    kv_cache_gib: int = 4
    """KV cache of each CPU worker, GiB (VLLM_CPU_KVCACHE_SPACE)."""

    num_threads: int = 0
    """Threads of each CPU worker's model. 0: an equal share of the cores, less one for its server."""

    gpu_memory_utilization: float = 0.92
    """Share of its GPU's memory that a local worker uses."""

    enable_sleep_mode: bool = False
    """Trainer and workers share GPUs: during an update workers move their weights to the host and drop their
    KV cache. Lower gpu_memory_utilization to leave room for the trainer's weights and optimizer."""

    enforce_eager: str = "auto"
    """true: do not compile the model, and use no CUDA graphs: a faster start, slower decoding. auto: false on
    a GPU, true on a CPU."""

    vllm_args: dict[str, Any] = field(default_factory=dict)
    """Further options of local workers, as vLLM's command line names them, e.g.
    rollout.vllm_args.kv_cache_dtype=fp8; not those that are set above. They can decide what is sampled: a run
    with others is another run."""

    def temperature_of(self, role: str) -> float:
        """Returns the sampling temperature of a role's calls."""
        own = self._of(role).temperature
        return self.temperature if own is None else own

    def top_p_of(self, role: str) -> float:
        """Returns the nucleus of a role's calls."""
        own = self._of(role).top_p
        return self.top_p if own is None else own

    def thinking_tokens_of(self, role: str) -> int:
        """Returns the limit of a role's thinking; 0 for no separate limit."""
        own = self._of(role).thinking_tokens
        return self.thinking_tokens if own is None else own

    def call_tokens_of(self, role: str) -> int:
        """Returns the limit of the tokens that the policy may write in one call of a role."""
        thinking = self.thinking_tokens_of(role)
        return thinking + self.answer_tokens if thinking else self.max_completion_length

    def _of(self, role: str) -> RoleConfig:
        # A custom operator may name roles of its own; an amortised answer is trained as a trace.
        role = "trace" if role == "amortise" else role
        return self.roles.changed().get(role, RoleConfig())

    def _roles(self) -> list[str]:
        return [item.name for item in fields(self.roles)]

    @property
    def call_tokens(self) -> int:
        """Limit of the tokens that the policy may write in one call of any role."""
        return max(map(self.call_tokens_of, self._roles()))

    @property
    def chats(self) -> bool:
        """True if calls go to a chat endpoint: text in, text out."""
        return bool(self.chat_url)

    def __post_init__(self) -> None:
        self.enforce_eager = str(self.enforce_eager).lower()  # YAML's true is a bool
        self._check_endpoints()
        self._check_workers()
        at_least("rollout.max_completion_length", self.max_completion_length, 1)
        at_least("rollout.thinking_tokens", self.thinking_tokens, 0)
        at_least("rollout.answer_tokens", self.answer_tokens, 1)
        at_least("rollout.max_concurrency", self.max_concurrency, 1)
        at_least("rollout.samples_per_request", self.samples_per_request, 1)
        at_least("rollout.num_draft_workers", self.num_draft_workers, 0)
        at_least("rollout.max_retries", self.max_retries, 0)
        above("rollout.request_timeout_seconds", self.request_timeout_seconds, 0)
        above("rollout.start_timeout_seconds", self.start_timeout_seconds, 0)
        above("rollout.publish_timeout_seconds", self.publish_timeout_seconds, 0)
        at_least("rollout.temperature", self.temperature, 0)
        for name, role in self.roles.changed().items():
            at_least(f"rollout.roles.{name}.temperature", role.temperature or 0, 0)
            at_least(f"rollout.roles.{name}.thinking_tokens", role.thinking_tokens or 0, 0)
        choice("rollout.weight_transfer", self.weight_transfer, ("directory", "nccl", "gloo", "ipc"))
        if self.weight_transfer == "nccl" and self.enable_sleep_mode:
            raise ValueError(
                "rollout.enable_sleep_mode lets trainer and workers share GPUs, but NCCL refuses two ranks "
                "on one GPU: set rollout.weight_transfer to directory, gloo or ipc."
            )
        if self.weight_transfer == "ipc" and (
            not self.enable_sleep_mode or self.urls or self.num_workers > 1
        ):
            raise ValueError(
                "rollout.weight_transfer=ipc needs one GPU that trainer and one local worker share: set "
                "rollout.enable_sleep_mode=true, leave rollout.urls empty and rollout.num_workers at 1; or "
                "use directory, nccl or gloo."
            )
        choice("rollout.max_lora_rank", str(self.max_lora_rank), LORA_RANKS)
        if self.max_lora_rank and self.weight_transfer != "directory":
            raise ValueError(
                f"rollout.max_lora_rank is {self.max_lora_rank}: adapters alone are published through a "
                f"directory, not with rollout.weight_transfer={self.weight_transfer}."
            )
        if self.max_lora_rank and self.enable_sleep_mode:
            raise ValueError(
                f"rollout.max_lora_rank is {self.max_lora_rank} and rollout.enable_sleep_mode true: a worker "
                "loses its weights when it sleeps, and an adapter alone does not bring them back. Set one of "
                "them to its default."
            )
        choice("rollout.pause_mode", self.pause_mode, ("keep", "keep_cache", "wait"))
        if self.call_tokens >= self.max_model_len:
            longest = max(self._roles(), key=self.call_tokens_of)
            forced = self.thinking_tokens_of(longest)
            names = "thinking_tokens + answer_tokens" if forced else "max_completion_length"
            where = f" of role {longest}" if longest in self.roles.changed() else ""
            raise ValueError(
                f"rollout.{names}{where} is {self.call_tokens}, but rollout.max_model_len is "
                f"{self.max_model_len}: no token is left for the prompt."
            )

    def _check_workers(self) -> None:
        """Checks the options of local workers."""
        at_least("rollout.num_workers", self.num_workers, 1)
        at_least("rollout.tensor_parallel_size", self.tensor_parallel_size, 1)
        at_least("rollout.port", self.port, 0)
        if self.port + self.num_workers > 2**16:
            raise ValueError(
                f"rollout.port is {self.port} with {self.num_workers} workers: ports end at {2**16 - 1}."
            )
        at_least("rollout.num_threads", self.num_threads, 0)
        at_least("rollout.kv_cache_gib", self.kv_cache_gib, 1)
        at_least("rollout.max_num_seqs", self.max_num_seqs, 1)
        share("rollout.gpu_memory_utilization", self.gpu_memory_utilization)
        above("rollout.gpu_memory_utilization", self.gpu_memory_utilization, 0)
        choice("rollout.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        choice("rollout.enforce_eager", self.enforce_eager, ("auto", "true", "false"))
        check_vllm_args(self.vllm_args)

    def _check_endpoints(self) -> None:
        for name, variable, urls in (
            ("urls", "VLLM_API_KEY", self.urls),
            ("chat_url", "OPENAI_API_KEY", [self.chat_url]),
            ("draft_url", "OPENAI_API_KEY", [self.draft_url]),
            ("teacher_model_server_url", "OPENAI_API_KEY", [self.teacher_model_server_url]),
        ):
            if any(map(has_user, urls)):  # the message does not repeat it
                raise ValueError(
                    f"rollout.{name} holds a user name or password, which would be written to config.yaml, "
                    f"logs and the tracker. Leave it out and set the environment variable {variable}."
                )
        if self.teacher_model_server_url.rstrip("/").endswith("/v1"):
            raise ValueError(
                f"rollout.teacher_model_server_url is '{self.teacher_model_server_url}': leave out /v1, as "
                "the teacher is asked on other paths, too."
            )
        every = [*self.urls, self.chat_url, self.draft_url, self.teacher_model_server_url]
        for url in filter(None, every):
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"A rollout URL must start with http:// or https://, got '{url}'.")
        if bool(self.draft_url) != bool(self.draft_model):
            raise ValueError(
                f"rollout.draft_url is '{self.draft_url}' and rollout.draft_model '{self.draft_model}': set "
                "both, or neither."
            )
        if self.num_draft_workers and self.enable_sleep_mode:
            raise ValueError(
                f"rollout.num_draft_workers is {self.num_draft_workers}, but with rollout.enable_sleep_mode "
                "the trainer needs the memory of all workers, and these are never put to sleep."
            )
        if self.chats and not self.chat_model:
            raise ValueError("rollout.chat_model must name the model to use at rollout.chat_url.")
        if self.chat_model and not self.chats:
            raise ValueError(f"rollout.chat_model is '{self.chat_model}', but rollout.chat_url is not set.")
        if self.chats and (most := max(map(self.thinking_tokens_of, self._roles()))):
            raise ValueError(
                f"rollout.thinking_tokens is {most}, but a chat endpoint "
                "(rollout.chat_url) cannot continue a half-written completion. Set it to 0."
            )
        if self.chats and self.urls:
            raise ValueError("Set either rollout.urls (vLLM servers) or rollout.chat_url (a chat endpoint).")
        if self.num_workers > 1 and (self.urls or self.chats):
            raise ValueError(
                f"rollout.num_workers is {self.num_workers}, but with rollout.urls or rollout.chat_url no "
                "local worker is started. Leave it at 1."
            )
