"""The axes of a trial, typed: the values that each level sets, and which of them are valid.

Each axis is frozen, and checked when it is made: a value out of its range is a ValueError whose message
names the key and what was expected. Must import neither Hydra nor torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

FAMILIES = ("llama", "opt", "gpt2", "mt5")  # known by their numbers, and to the closed form
BY_CONFIG = "config"  # any other: known by its transformers configuration
WEIGHTS = ("random", "pretrained")
DTYPES = ("float32", "float16", "bfloat16")
QUANTIZATIONS = ("none", "int8", "nf4")
LEARNED_POSITIONS = ("opt", "gpt2")


def require(condition: bool, message: str) -> None:
    """Checks that a condition holds.

    Raises:
        ValueError: it does not hold; with this message.
    """
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`; the message names both."""
    require(value in choices, f"{name}={value}: choose one of {', '.join(filter(None, choices))}")


_MOST = 2**62  # half of what a row's integer columns hold


def at_least(name: str, value: float | None, least: float) -> None:
    """Raises ValueError unless `value` is a number from `least` to 2^62, so that it fits a row's column."""
    require(value is not None and value >= least, f"{name}={value}: must be at least {least}")
    require(value is not None and value <= _MOST, f"{name}={value}: must be at most 2^62")


@dataclass(frozen=True)
class Model:
    """An architecture: by the numbers of one of `FAMILIES`, or by a transformers configuration.

    `config` holds what a config.json holds. Where it is given, the numbers are 0 until a worker has read
    them from it (`bench.workload.architectures.resolved`). `pretrained` is the folder or hub id that the
    configuration came from; its weights are read only if `weights` says so.
    """

    name: str
    family: str = BY_CONFIG
    hidden_size: int = 0
    intermediate_size: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    max_positions: int = 0
    tie_embeddings: bool = False
    pretrained: str | None = None
    weights: str | None = None
    config: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        one_of("model.weights", self.weights, (None, *WEIGHTS))
        if self.by_config:
            return
        one_of("model.family", self.family, FAMILIES)
        for number in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads"):
            at_least(f"model.{number}", getattr(self, number), 1)
        for number in ("head_dim", "vocab_size", "max_positions"):
            at_least(f"model.{number}", getattr(self, number), 1)
        require(
            self.heads % self.kv_heads == 0,
            f"model.kv_heads={self.kv_heads}: must divide model.heads={self.heads}",
        )
        if self.family == "llama":
            require(
                self.hidden_size % self.heads == 0,
                f"model.hidden_size={self.hidden_size}: must be a multiple of model.heads={self.heads}",
            )
        if self.family in LEARNED_POSITIONS:
            require(
                self.heads * self.head_dim == self.hidden_size,
                f"model.head_dim={self.head_dim}: {self.family} needs heads x head_dim = "
                f"hidden_size, here {self.heads} x {self.head_dim} and {self.hidden_size}",
            )

    @property
    def by_config(self) -> bool:
        """Whether a transformers configuration says what the architecture is, and no numbers do."""
        return self.config is not None or self.pretrained is not None

    @property
    def reads_weights(self) -> bool:
        """Whether a measurement reads the weights from disk; otherwise they are random."""
        return self.pretrained is not None and self.weights != "random"

    @property
    def label(self) -> str:
        """What the `model` column shows: the level's name, or the name of the folder or hub id."""
        before_config = self.config is None and self.pretrained  # a row of before there was `config`
        return str(self.pretrained if before_config else self.name).rstrip("/").split("/")[-1]

    @property
    def encoder_decoder(self) -> bool:
        """Whether a step runs `seq_len` source tokens and `seq_len` target tokens."""
        return self.family == "mt5" or bool((self.config or {}).get("is_encoder_decoder"))


@dataclass(frozen=True)
class Precision:
    """Dtypes of the weights and of the arithmetic, and how the blocks' linears are quantised."""

    name: str
    param_dtype: str
    compute_dtype: str
    quantization: str
    int8_threshold: float = 6.0
    double_quant: bool = True
    autocast: bool | None = None  # None: where the arithmetic is narrower than the weights

    def __post_init__(self) -> None:
        one_of("precision.param_dtype", self.param_dtype, DTYPES)
        one_of("precision.compute_dtype", self.compute_dtype, DTYPES)
        one_of("precision.quantization", self.quantization, QUANTIZATIONS)
        at_least("precision.int8_threshold", self.int8_threshold, 0)

    @property
    def is_mixed(self) -> bool:
        """Whether the arithmetic is narrower than the weights."""
        return self.compute_dtype != self.param_dtype and self.compute_dtype != "float32"

    @property
    def runs_autocast(self) -> bool:
        """Whether the forward of training runs under torch.autocast."""
        return self.is_mixed if self.autocast is None else self.autocast

    @property
    def casts_weights(self) -> bool:
        """Whether autocast makes narrower copies of the weights that it multiplies."""
        return self.runs_autocast and self.is_mixed

    @property
    def loss_scaling(self) -> bool:
        """Whether a GradScaler is needed: autocast to fp16."""
        return self.runs_autocast and self.compute_dtype == "float16"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters; what else than `name` is set matters only when they are on."""

    name: str
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("lora.name", self.name, ("off", "on"))
        at_least("lora.rank", self.rank, 1)
        at_least("lora.alpha", self.alpha, 1)
        one_of("lora.dtype", self.dtype, ("float32", "auto"))
        require(0 <= self.dropout < 1, f"lora.dropout={self.dropout}: must be in [0, 1)")
        require(
            all(self.targets.split("+")),
            f"lora.targets={self.targets}: all-linear, or module names joined by a plus sign",
        )

    @property
    def enabled(self) -> bool:
        """Whether adapters train in place of the weights."""
        return self.name == "on"


@dataclass(frozen=True)
class Checkpointing:
    """Which activations are kept for backward, and which are recomputed."""

    name: str

    def __post_init__(self) -> None:
        one_of("checkpointing.name", self.name, ("off", "on", "selective"))


@dataclass(frozen=True)
class Fsdp:
    """How many ranks train together, and what each of them holds."""

    name: str
    world_size: int = 1

    def __post_init__(self) -> None:
        one_of("fsdp.name", self.name, ("off", "full_shard", "shard_grad_op", "no_shard"))
        at_least("fsdp.world_size", self.world_size, 1)

    @property
    def shards(self) -> bool:
        """Whether parameters, gradients and optimizer state are divided among the ranks."""
        return self.name in ("full_shard", "shard_grad_op")


@dataclass(frozen=True)
class Offload:
    """What is kept on the host or on disk, instead of the device, until it is needed."""

    name: str

    def __post_init__(self) -> None:
        one_of("offload.name", self.name, ("off", "params", "activations", "disk"))


@dataclass(frozen=True)
class Optimizer:
    """The optimizer, one level for each implementation, since the implementation changes the peak."""

    name: str
    lr: float = 1e-3
    eps: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    in_backward: bool = False

    def __post_init__(self) -> None:
        names = ("adamw", "adamw_fused", "adamw_foreach", "adamw_8bit", "adamw_8bit_paged")
        one_of("optimizer.name", self.name, (*names, "sgd", "adafactor"))
        require(
            0 < self.lr < math.inf,
            f"optimizer.lr={self.lr}: must be greater than 0, and finite",
        )
        require(
            self.eps is None or self.eps > 0,
            f"optimizer.eps={self.eps}: must be greater than 0, or null for the default",
        )
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        require(0 <= self.momentum < 1, f"optimizer.momentum={self.momentum}: must be in [0, 1)")

    @property
    def eight_bit(self) -> bool:
        """Whether its state is bitsandbytes' block-wise 8-bit state."""
        return self.name.startswith("adamw_8bit")


@dataclass(frozen=True)
class Workload:
    """What a step does: it trains, or it generates."""

    name: str
    decode_tokens: int = 32

    def __post_init__(self) -> None:
        one_of("workload.name", self.name, ("train", "prefill", "decode"))
        at_least("workload.decode_tokens", self.decode_tokens, 2)

    @property
    def inference(self) -> bool:
        """Whether a step runs inference, so that no weights change."""
        return self.name != "train"


@dataclass(frozen=True)
class KvCache:
    """How keys and values of earlier tokens are kept; matters only for inference."""

    name: str

    def __post_init__(self) -> None:
        one_of("kv_cache.name", self.name, ("dynamic", "static"))


@dataclass(frozen=True)
class Timing:
    """When the timed steps start and stop."""

    warmup_steps: int = 3
    min_steps: int = 5
    max_steps: int = 200
    budget_seconds: float = 3.0
    relative_ci: float = 0.01

    def __post_init__(self) -> None:
        at_least("timing.warmup_steps", self.warmup_steps, 1)
        at_least("timing.min_steps", self.min_steps, 1)
        require(
            self.max_steps >= self.min_steps,
            f"timing.max_steps={self.max_steps}: must be at least timing.min_steps={self.min_steps}",
        )
        require(
            self.budget_seconds > 0,
            f"timing.budget_seconds={self.budget_seconds}: must be greater than 0",
        )
        require(self.relative_ci > 0, f"timing.relative_ci={self.relative_ci}: must be greater than 0")
