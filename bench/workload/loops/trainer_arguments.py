"""A trial in the words of transformers' TrainingArguments, as far as these have words for it.

In: a trial. Out: keyword arguments that a person can paste, and which the row keeps (`loop_arguments`). An
optimizer for which there is no word is passed to the Trainer ready made. What can be said in neither way is
a rule of `trial/skip_rules.py`.
"""

from __future__ import annotations

from typing import Any

from bench.trial.spec import Trial

# There is no name for an AdamW that is foreach on every device, and none for updates in the backward.
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_fused": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "adamw_8bit_paged": "paged_adamw_8bit",
    "sgd": "sgd",
    "adafactor": "adafactor",
}
_MOST_WATCHED_STEPS = 2 * 12  # after the timed ones


def names_optimizer(trial: Trial) -> bool:
    """Whether TrainingArguments have a name for the trial's optimizer."""
    return trial.optimizer.name in OPTIMIZERS and not trial.optimizer.in_backward


def arguments_of(trial: Trial, *, epsilon: float, on_cpu: bool) -> dict[str, Any]:
    """The keyword arguments for TrainingArguments, without those that name a folder.

    Args:
        trial: what shall be trained.
        epsilon: what Adam adds to its denominators.
        on_cpu: whether it trains on a CPU.
    """
    steps = trial.timing.warmup_steps + trial.timing.max_steps + _MOST_WATCHED_STEPS
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": trial.micro_batch_size,
        "gradient_accumulation_steps": trial.grad_accum_steps,
        "max_steps": steps,
        **_precision(trial),
        **_optimizer(trial, epsilon),
        "max_grad_norm": trial.max_grad_norm or 0.0,
        "seed": trial.seed,
    }
    if trial.fsdp.shards:
        arguments |= {"fsdp": True, "fsdp_config": _sharding(trial)}
    elif trial.checkpointing.name == "on":
        arguments["gradient_checkpointing"] = True
        # bitsandbytes' int8 products keep their input where the other kind cannot free it
        reentrant = trial.precision.quantization == "int8"
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    if on_cpu:
        arguments["use_cpu"] = True
    silent = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return arguments | {"train_sampling_strategy": "sequential"} | silent


def _sharding(trial: Trial) -> dict[str, Any]:
    """FSDP's own keys: which of them to use for checkpointing is the Trainer's advice."""
    config: dict[str, Any] = {"reshard_after_forward": trial.fsdp.name == "full_shard"}
    if trial.checkpointing.name == "on":
        config["activation_checkpointing"] = True
    if trial.offload.name == "params":
        config["cpu_offload"] = True
    return config


def _precision(trial: Trial) -> dict[str, Any]:
    if not trial.precision.runs_autocast:
        return {}
    return {"fp16" if trial.precision.compute_dtype == "float16" else "bf16": True}


def _optimizer(trial: Trial, epsilon: float) -> dict[str, Any]:
    chosen = trial.optimizer
    arguments: dict[str, Any] = {"learning_rate": chosen.lr, "lr_scheduler_type": "constant"}
    if not names_optimizer(trial):
        return arguments
    arguments |= {"optim": OPTIMIZERS[chosen.name], "weight_decay": chosen.weight_decay}
    if chosen.name.startswith("adamw"):
        arguments["adam_epsilon"] = epsilon
    if chosen.momentum:
        arguments["optim_args"] = f"momentum={chosen.momentum}"
    return arguments
