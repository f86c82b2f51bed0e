"""A trial: one configuration, executed once, in one fresh process.

This module owns the typed form of a configuration, the rules that make one invalid (an error, the user must
change something), and the identity of a trial. It knows neither Hydra nor torch: the door validates here in
milliseconds. What makes a valid one impossible is in `rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

METHODS = ("measure", "simulate", "estimate")
FORMULAS = ("closed_form", "rule_of_thumb")
FAMILIES = ("llama", "opt", "gpt2", "mt5")
DTYPES = ("float32", "float16", "bfloat16")
QUANTIZATIONS = ("none", "int8", "nf4")
LEARNED_POSITIONS = ("opt", "gpt2")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name}={value}: choose one of {', '.join(choices)}")


_MOST = 2**62  # what a row's integer columns hold, with room to spare


def _at_least(name: str, value: float | None, least: float) -> None:
    _require(value is not None and value >= least, f"{name}={value}: must be at least {least}")
    _require(value is not None and value <= _MOST, f"{name}={value}: must be at most 2^62")


@dataclass(frozen=True)
class Model:
    """An architecture by its numbers; the weights are random unless `pretrained` names some."""

    name: str
    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tie_embeddings: bool
    pretrained: str | None = None

    def __post_init__(self) -> None:
        _one_of("model.family", self.family, FAMILIES)
        for field in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads"):
            _at_least(f"model.{field}", getattr(self, field), 1)
        for field in ("head_dim", "vocab_size", "max_positions"):
            _at_least(f"model.{field}", getattr(self, field), 1)
        _require(
            self.heads % self.kv_heads == 0,
            f"model.kv_heads={self.kv_heads}: must divide model.heads={self.heads}",
        )
        if self.family == "llama":
            _require(
                self.hidden_size % self.heads == 0,
                f"model.hidden_size={self.hidden_size}: must be a multiple of model.heads={self.heads}",
            )
        if self.family in LEARNED_POSITIONS:
            _require(
                self.heads * self.head_dim == self.hidden_size,
                f"model.head_dim={self.head_dim}: {self.family} needs heads x head_dim = "
                f"hidden_size, here {self.heads} x {self.head_dim} and {self.hidden_size}",
            )

    @property
    def label(self) -> str:
        """What the `model` column shows: the level's name, or the pretrained weights' name."""
        return self.pretrained.rstrip("/").split("/")[-1] if self.pretrained else self.name

    @property
    def encoder_decoder(self) -> bool:
        """Whether a step runs `seq_len` source tokens and `seq_len` target tokens."""
        return self.family == "mt5"


@dataclass(frozen=True)
class Precision:
    """Dtypes of the weights and of the arithmetic, and how the blocks' linears are quantised."""

    name: str
    param_dtype: str
    compute_dtype: str
    quantization: str
    int8_threshold: float = 6.0
    double_quant: bool = True

    def __post_init__(self) -> None:
        _one_of("precision.param_dtype", self.param_dtype, DTYPES)
        _one_of("precision.compute_dtype", self.compute_dtype, DTYPES)
        _one_of("precision.quantization", self.quantization, QUANTIZATIONS)
        _at_least("precision.int8_threshold", self.int8_threshold, 0)

    @property
    def autocast(self) -> bool:
        """Whether the forward runs under torch.autocast: arithmetic narrower than the weights."""
        return self.compute_dtype != self.param_dtype and self.compute_dtype != "float32"

    @property
    def loss_scaling(self) -> bool:
        """Whether a GradScaler is needed: fp16 arithmetic over fp32 weights."""
        return self.autocast and self.compute_dtype == "float16"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters; everything but `name` counts only when they are on."""

    name: str
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        _one_of("lora.name", self.name, ("off", "on"))
        _at_least("lora.rank", self.rank, 1)
        _at_least("lora.alpha", self.alpha, 1)
        _require(0 <= self.dropout < 1, f"lora.dropout={self.dropout}: must be in [0, 1)")
        _require(
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
        _one_of("checkpointing.name", self.name, ("off", "on", "selective"))


@dataclass(frozen=True)
class Fsdp:
    """How many ranks train together, and what each of them holds."""

    name: str
    world_size: int = 1

    def __post_init__(self) -> None:
        _one_of("fsdp.name", self.name, ("off", "full_shard", "shard_grad_op", "no_shard"))
        _at_least("fsdp.world_size", self.world_size, 1)

    @property
    def shards(self) -> bool:
        """Whether parameters, gradients and optimizer state are divided among the ranks."""
        return self.name in ("full_shard", "shard_grad_op")


@dataclass(frozen=True)
class Offload:
    """What waits on the host instead of the device."""

    name: str

    def __post_init__(self) -> None:
        _one_of("offload.name", self.name, ("off", "params", "activations", "disk"))


@dataclass(frozen=True)
class Optimizer:
    """The optimizer by implementation, since the implementation changes the peak."""

    name: str
    lr: float = 1e-3
    eps: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        names = ("adamw", "adamw_fused", "adamw_foreach", "adamw_8bit", "adamw_8bit_paged")
        _one_of("optimizer.name", self.name, (*names, "sgd", "adafactor"))
        _require(
            0 < self.lr < math.inf,
            f"optimizer.lr={self.lr}: must be greater than 0, and finite",
        )
        _require(
            self.eps is None or self.eps > 0,
            f"optimizer.eps={self.eps}: must be greater than 0, or null for the default",
        )
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        _require(0 <= self.momentum < 1, f"optimizer.momentum={self.momentum}: must be in [0, 1)")

    @property
    def eight_bit(self) -> bool:
        """Whether the state is bitsandbytes' block-wise 8-bit one."""
        return self.name.startswith("adamw_8bit")


@dataclass(frozen=True)
class Workload:
    """What a step does."""

    name: str
    decode_tokens: int = 32

    def __post_init__(self) -> None:
        _one_of("workload.name", self.name, ("train", "prefill", "decode"))
        _at_least("workload.decode_tokens", self.decode_tokens, 2)

    @property
    def inference(self) -> bool:
        """Whether nothing trains."""
        return self.name != "train"


@dataclass(frozen=True)
class KvCache:
    """How keys and values of earlier tokens are kept; counts only where nothing trains."""

    name: str

    def __post_init__(self) -> None:
        _one_of("kv_cache.name", self.name, ("dynamic", "static"))


@dataclass(frozen=True)
class Timing:
    """When the timed steps start and stop."""

    warmup_steps: int = 3
    min_steps: int = 5
    max_steps: int = 200
    budget_seconds: float = 3.0
    relative_ci: float = 0.01

    def __post_init__(self) -> None:
        _at_least("timing.warmup_steps", self.warmup_steps, 1)
        _at_least("timing.min_steps", self.min_steps, 1)
        _require(
            self.max_steps >= self.min_steps,
            f"timing.max_steps={self.max_steps}: must be at least timing.min_steps={self.min_steps}",
        )
        _require(
            self.budget_seconds > 0,
            f"timing.budget_seconds={self.budget_seconds}: must be greater than 0",
        )
        _require(self.relative_ci > 0, f"timing.relative_ci={self.relative_ci}: must be greater than 0")


@dataclass(frozen=True)
class Trial:
    """One configuration, validated: everything that defines what is executed.

    Raises:
        ValueError: a value is out of its range; the message names the key and what was expected.
    """

    model: Model
    precision: Precision
    lora: Lora
    checkpointing: Checkpointing
    fsdp: Fsdp
    offload: Offload
    optimizer: Optimizer
    workload: Workload
    timing: Timing
    kv_cache: KvCache = KvCache("dynamic")
    method: str = "measure"
    formula: str = "closed_form"
    whole: bool = False
    device: str = "auto"
    micro_batch_size: int = 4
    seq_len: int = 128
    grad_accum_steps: int = 1
    seed: int = 0
    threads: int | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("formula", self.formula, FORMULAS)
        for field in ("micro_batch_size", "grad_accum_steps"):
            _at_least(field, getattr(self, field), 1)
        _at_least("seq_len", self.seq_len, 2)
        _require(0 <= self.seed < 2**31, f"seed={self.seed}: must be in [0, 2^31)")
        for optional in ("threads", "memory_limit_bytes"):
            if getattr(self, optional) is not None:
                _at_least(optional, getattr(self, optional), 1)
        kind, _, index = self.device.partition(":")
        _one_of("device", kind, ("auto", "cpu", "cuda", "xpu", "mps"))
        _require(
            index.isdigit() or ":" not in self.device,
            f"device={self.device}: the part after the colon must be a device's number",
        )

    @property
    def world_size(self) -> int:
        """Ranks that train together; 1 when fsdp is off, whatever fsdp.world_size says."""
        return 1 if self.fsdp.name == "off" else self.fsdp.world_size

    @property
    def processes(self) -> int:
        """Processes that execute it: its ranks when measured, one that imagines the others otherwise."""
        return self.world_size if self.method == "measure" else 1

    @property
    def cached_tokens(self) -> int:
        """Tokens of one sequence whose keys and values are kept in the end; 0 where it trains.

        The last token that is decoded is not fed back.
        """
        if not self.workload.inference:
            return 0
        return self.seq_len + (self.workload.decode_tokens - 1 if self.workload.name == "decode" else 0)

    @property
    def quantises_weights(self) -> bool:
        """Whether the blocks' weights are stored quantised; int8 weights that train are not."""
        frozen = self.lora.enabled or self.workload.inference
        return self.precision.quantization == "nf4" or (self.precision.quantization == "int8" and frozen)

    @property
    def tokens_per_step(self) -> int:
        """Tokens one rank processes in a step; an encoder-decoder's source and target both count.

        Where it decodes, a step is one new token of each sequence.
        """
        if self.workload.name == "decode":
            return self.micro_batch_size
        sides = 2 if self.model.encoder_decoder else 1
        return self.micro_batch_size * self.seq_len * self.grad_accum_steps * sides

    def definition(self) -> dict[str, Any]:
        """What defines the trial, as plain data; details of axes that are off are left out."""
        whole = asdict(self)
        for axis in ("lora", "fsdp"):
            if whole[axis]["name"] == "off":
                whole[axis] = {"name": "off"}
        if self.workload.name != "decode":
            del whole["workload"]["decode_tokens"]
        if not self.workload.inference:
            del whole["kv_cache"]
        for key, method in (("formula", "estimate"), ("whole", "simulate")):
            if self.method != method:
                del whole[key]
        return whole

    @property
    def trial_id(self) -> str:
        """Hash of the definition: any change that defines the trial makes a new id (16 hex digits)."""
        canonical = json.dumps(self.definition(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def from_definition(definition: dict[str, Any]) -> Trial:
    """The trial that a row's `definition` describes; keys that this version does not know are left out.

    Raises:
        ValueError: a value is out of the range that this version accepts.
        TypeError: something that defines a trial is missing.
    """
    values: dict[str, Any] = {}
    for field in fields(Trial):
        if field.name not in definition:
            continue
        value = definition[field.name]
        part = _PARTS.get(field.name)
        if part is not None:
            value = part(**{f.name: value[f.name] for f in fields(part) if f.name in value})
        values[field.name] = value
    return Trial(**values)


_PARTS: dict[str, Any] = {
    "model": Model,
    "precision": Precision,
    "lora": Lora,
    "checkpointing": Checkpointing,
    "fsdp": Fsdp,
    "offload": Offload,
    "optimizer": Optimizer,
    "workload": Workload,
    "kv_cache": KvCache,
    "timing": Timing,
}
