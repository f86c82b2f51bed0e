"""A trial: one configuration, executed once, in one fresh process.

This module owns what defines a trial, and its identity; the axes are in `axes.py`, and valid combinations
that cannot exist in `skip_rules.py`. Must import neither Hydra nor torch: the door checks in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bench.trial.axes import (
    Checkpointing,
    Fsdp,
    KvCache,
    Lora,
    Model,
    Offload,
    Optimizer,
    Precision,
    Timing,
    Workload,
    at_least,
    one_of,
    require,
)
from bench.trial.step_axes import Loop, Loss

_BY_CONFIG = ("name", "config", "pretrained", "weights")  # what defines a model, and has a value
_BY_NUMBERS = tuple(f.name for f in fields(Model) if f.name not in ("config", "weights"))
METHODS = ("measure", "simulate", "estimate")
FORMULAS = ("closed_form", "rule_of_thumb")


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
    kv_cache: KvCache = field(default_factory=lambda: KvCache("dynamic"))
    loss: Loss = field(default_factory=lambda: Loss("full"))
    loop: Loop = field(default_factory=lambda: Loop("bare"))
    method: str = "measure"
    formula: str = "closed_form"
    whole: bool = False
    device: str = "auto"
    gpu: str | None = None
    micro_batch_size: int = 4
    seq_len: int = 128
    grad_accum_steps: int = 1
    max_grad_norm: float | None = None
    keep_outputs: bool = False
    seed: int = 0
    threads: int | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("formula", self.formula, FORMULAS)
        for name in ("micro_batch_size", "grad_accum_steps"):
            at_least(name, getattr(self, name), 1)
        at_least("seq_len", self.seq_len, 2)
        require(0 <= self.seed < 2**31, f"seed={self.seed}: must be in [0, 2^31)")
        if self.max_grad_norm is not None:
            require(self.max_grad_norm > 0, f"max_grad_norm={self.max_grad_norm}: must be greater than 0")
        for optional in ("threads", "memory_limit_bytes"):
            if getattr(self, optional) is not None:
                at_least(optional, getattr(self, optional), 1)
        kind, _, index = self.device.partition(":")
        one_of("device", kind, ("auto", "cpu", "cuda", "xpu", "mps"))
        require(
            index.isdigit() or ":" not in self.device,
            f"device={self.device}: the part after the colon must be a device's number",
        )

    @property
    def world_size(self) -> int:
        """Ranks that train together; 1 when fsdp is off, whatever fsdp.world_size is."""
        return 1 if self.fsdp.name == "off" else self.fsdp.world_size

    @property
    def processes(self) -> int:
        """Processes that execute the trial: one for each rank if it is measured, otherwise one."""
        return self.world_size if self.method == "measure" else 1

    @property
    def cached_tokens(self) -> int:
        """Tokens of one sequence whose keys and values are in the cache at the end; 0 where it trains.

        The last token that is decoded is not fed back.
        """
        if not self.workload.inference:
            return 0
        return self.seq_len + (self.workload.decode_tokens - 1 if self.workload.name == "decode" else 0)

    @property
    def runs_autocast(self) -> bool:
        """Whether a step runs under autocast; under FSDP accelerate casts by FSDP's policy in its place."""
        by_policy = self.loop.is_trainer and self.fsdp.shards
        return self.precision.runs_autocast and not self.workload.inference and not by_policy

    @property
    def quantises_weights(self) -> bool:
        """Whether the blocks' linear weights are stored quantised; int8 weights that train are not."""
        frozen = self.lora.enabled or self.workload.inference
        return self.precision.quantization == "nf4" or (self.precision.quantization == "int8" and frozen)

    @property
    def adapter_dtype(self) -> str:
        """The dtype of LoRA's adapters: float32, or the base's; of a quantised base the arithmetic's."""
        if self.lora.dtype == "float32":
            return "float32"
        precision = self.precision
        return precision.param_dtype if precision.quantization == "none" else precision.compute_dtype

    @property
    def tokens_per_step(self) -> int:
        """Tokens one rank processes in a step; an encoder-decoder's source and target both count.

        Where it decodes, a step is one new token of each sequence.
        """
        if self.workload.name == "decode":
            return self.micro_batch_size
        sides = 2 if self.model.encoder_decoder else 1
        return self.micro_batch_size * self.seq_len * self.grad_accum_steps * sides

    @property
    def subject(self) -> str:
        """Its model, workload and shape in words, as above a table."""
        return shape_words(
            self.model.label, self.workload.name, self.micro_batch_size, self.seq_len, self.grad_accum_steps
        )

    def definition(self) -> dict[str, Any]:
        """What defines the trial, as plain data; details of axes that are off are left out.

        Except those that contradict the axis: such a trial is skipped, and is not the one without them.
        """
        whole = asdict(self)
        for axis in ("lora", "fsdp"):
            if whole[axis]["name"] == "off":
                whole[axis] = {"name": "off"}
        if self.fsdp.name == "off" and self.fsdp.world_size > 1:  # it is skipped: not the trial without
            whole["fsdp"]["world_size"] = self.fsdp.world_size
        if self.workload.name != "decode":
            del whole["workload"]["decode_tokens"]
        if not self.workload.inference and self.kv_cache.name == "dynamic":
            del whole["kv_cache"]
        if not self.loss.chunked:
            del whole["loss"]
        if not self.loop.is_trainer:
            del whole["loop"]
        for key in ("max_grad_norm", "keep_outputs"):
            if not whole[key]:
                del whole[key]
        if not self.optimizer.in_backward:
            del whole["optimizer"]["in_backward"]
        if self.lora.dtype == "float32":
            whole["lora"].pop("dtype", None)
        if self.precision.autocast in (None, self.precision.is_mixed):  # what the dtypes say
            del whole["precision"]["autocast"]
        for key, method in (("formula", "estimate"), ("whole", "simulate")):
            if self.method != method:
                del whole[key]
        if self.gpu is None or self.method != "simulate":
            del whole["gpu"]
        kept = _BY_CONFIG if self.model.config is not None else _BY_NUMBERS
        whole["model"] = {key: value for key, value in whole["model"].items() if key in kept}
        return whole

    @property
    def trial_id(self) -> str:
        """Hash of the definition: any change that defines the trial makes a new id (16 hex digits).

        A model that a configuration describes is its content: wherever the file lies, and whatever it is
        called, unless its weights are read.
        """
        definition = self.definition()
        if self.model.config is not None:
            ignored = {"pretrained"} if self.model.reads_weights else {"pretrained", "name", "weights"}
            definition["model"] = {k: v for k, v in definition["model"].items() if k not in ignored}
        canonical = json.dumps(definition, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def from_definition(definition: dict[str, Any]) -> Trial:
    """The trial that a row's `definition` describes; keys that this version does not know are left out.

    Raises:
        ValueError: a value is out of the range that this version accepts.
        TypeError: something that defines a trial is missing.
    """
    values: dict[str, Any] = {}
    for key in fields(Trial):
        if key.name not in definition:
            continue
        value = definition[key.name]
        axis = _AXES.get(key.name)
        if axis is not None:
            value = axis(**{f.name: value[f.name] for f in fields(axis) if f.name in value})
        values[key.name] = value
    return Trial(**values)


def from_text(definition: str) -> Trial | None:
    """The trial that the text of a row's `definition` describes; None where it is no valid trial to this
    version, since a row may hold any text."""
    try:
        return from_definition(json.loads(definition))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


_AXES: dict[str, Any] = {
    "model": Model,
    "precision": Precision,
    "lora": Lora,
    "checkpointing": Checkpointing,
    "fsdp": Fsdp,
    "offload": Offload,
    "optimizer": Optimizer,
    "workload": Workload,
    "kv_cache": KvCache,
    "loss": Loss,
    "loop": Loop,
    "timing": Timing,
}


def shape_words(model: str, workload: str, micro_batch_size: int, seq_len: int, micro_steps: int) -> str:
    """A model, a workload and a shape in words: `llama-7b, train, 1 × 2048 tokens`."""
    accumulated = f" × {micro_steps} micro-steps" if micro_steps > 1 else ""
    return f"{model}, {workload}, {micro_batch_size} × {seq_len} tokens{accumulated}"


def subject_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """What rows are of: models, workloads, shapes and devices, each once, as above a table."""
    rows = list(rows)
    shapes = dict.fromkeys(
        shape_words(
            row["model"], row["workload"], row["micro_batch_size"], row["seq_len"], row["grad_accum_steps"]
        )
        for row in rows
    )
    devices = dict.fromkeys(row["device_name"] for row in rows if row["device_name"])
    return f"{'; '.join(shapes)}, on {', '.join(devices) or 'no device'}"


def axes_of(trial: Trial) -> dict[str, Any]:
    """The columns of a row that say what the trial was: names of levels, and sizes."""
    return {
        "method": trial.method,
        "formula": trial.formula if trial.method == "estimate" else None,
        "model": trial.model.label,
        "precision": trial.precision.name,
        "lora": trial.lora.name,
        "lora_rank": trial.lora.rank if trial.lora.enabled else None,
        "checkpointing": trial.checkpointing.name,
        "fsdp": trial.fsdp.name,
        "world_size": trial.world_size,
        "offload": trial.offload.name,
        "optimizer": trial.optimizer.name,
        "workload": trial.workload.name,
        "loss": None if trial.workload.inference else trial.loss.name,
        "loop": None if trial.workload.inference else trial.loop.name,
        "kv_cache": trial.kv_cache.name if trial.workload.inference else None,
        "decode_tokens": trial.workload.decode_tokens if trial.workload.name == "decode" else None,
        "micro_batch_size": trial.micro_batch_size,
        "seq_len": trial.seq_len,
        "grad_accum_steps": trial.grad_accum_steps,
        "seed": trial.seed,
        "param_dtype": trial.precision.param_dtype,
        "compute_dtype": trial.precision.compute_dtype,
        "quantization": trial.precision.quantization,
        "autocast": trial.runs_autocast,
        "memory_limit_bytes": trial.memory_limit_bytes,
    }
