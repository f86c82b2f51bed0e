"""Combinations of valid values that cannot exist: each a rule with its reason, one true sentence.

The door does not ask: a skip is a row. The worker does, once it knows its device, and so does a plan.
"""

from __future__ import annotations

from bench.trial.axes import LEARNED_POSITIONS
from bench.trial.platform import Platform
from bench.trial.spec import Trial


def skip_reason(trial: Trial, platform: Platform, device_count: int) -> str | None:
    """Why this combination of valid values cannot exist on such a device, or None.

    Args:
        trial: the combination.
        platform: what it would run on.
        device_count: such devices on this machine; not looked at where ranks share one.

    Returns:
        One sentence for the row's `reason`, or None when the trial can run.
    """
    quantization, optimizer = trial.precision.quantization, trial.optimizer
    learned = trial.model.family in LEARNED_POSITIONS and trial.model.pretrained is None
    rules: list[tuple[bool, str]] = [
        (
            trial.method != "measure" and not platform.is_modelled,
            f"method={trial.method} knows what a step does on cpu and cuda, not on {platform.device_type}",
        ),
        (
            learned and max(trial.seq_len, trial.cached_tokens) > trial.model.max_positions,
            f"{trial.model.name} has {trial.model.max_positions} learned positions, fewer than "
            f"{max(trial.seq_len, trial.cached_tokens)} tokens (seq_len={trial.seq_len})",
        ),
        (
            quantization == "nf4" and not trial.lora.enabled and not trial.workload.inference,
            "nf4 weights are frozen 4-bit values that no gradient can update; train adapters with lora=on",
        ),
        (
            trial.fsdp.shards and quantization == "int8",
            "fully_shard cannot shard bitsandbytes int8 weights: a sharded parameter loses its "
            "quantisation state (CB, SCB)",
        ),
        (
            trial.fsdp.shards and optimizer.eight_bit,
            "bitsandbytes 8-bit optimizers update raw storage and do not know sharded parameters (DTensor)",
        ),
        (
            trial.fsdp.shards and optimizer.name == "adafactor",
            "torch's Adafactor takes norms in place, which sharded parameters (DTensor) do not allow",
        ),
        (
            trial.offload.name == "params" and not trial.fsdp.shards and not trial.workload.inference,
            "offload=params is FSDP's CPU offload: it needs fsdp=full_shard or shard_grad_op "
            "(fsdp.world_size=1 is enough)",
        ),
        (
            trial.checkpointing.name == "selective" and quantization == "int8",
            "bitsandbytes keeps the inputs of int8 matmuls on its own autograd context, where "
            "selective checkpointing cannot free them",
        ),
        (
            optimizer.name == "adamw_8bit_paged" and not platform.has_unified_memory,
            f"paged optimizers use CUDA unified memory, which device={platform.device_type} does not have",
        ),
        (
            trial.method == "measure"
            and not platform.ranks_share_device
            and trial.world_size > device_count,
            f"fsdp.world_size={trial.world_size} needs as many {platform.device_type} devices, and this "
            f"machine has {device_count}",
        ),
    ]
    rules += _of_inference(trial) if trial.workload.inference else _of_training(trial)
    return next((reason for applies, reason in rules if applies), None)


def _of_training(trial: Trial) -> list[tuple[bool, str]]:
    return [
        (
            trial.offload.name == "disk",
            "offload=disk keeps weights that nobody changes on disk: it is for workload=prefill and decode",
        ),
    ]


def _of_inference(trial: Trial) -> list[tuple[bool, str]]:
    """What belongs to training alone, and what inference does not have here."""
    workload = f"workload={trial.workload.name}"
    offloads = trial.offload.name in ("params", "disk")
    return [
        (
            trial.model.encoder_decoder,
            f"{workload} is of decoders: an encoder-decoder has two sequences and two kinds of cache",
        ),
        (
            trial.precision.autocast and trial.precision.quantization == "none",
            f"mixed precision keeps 32-bit weights for the optimizer, and {workload} has none: "
            f"choose fp16_pure or bf16_pure",
        ),
        (trial.lora.enabled, f"{workload}: adapters are merged into the weights before, and cost nothing"),
        (
            trial.checkpointing.name != "off",
            f"{workload} keeps no activation for a backward: there is nothing to recompute",
        ),
        (trial.optimizer.name != "adamw", f"{workload} has no optimizer"),
        (trial.grad_accum_steps > 1, f"{workload} has no gradients to accumulate"),
        (
            trial.fsdp.name != "off",
            f"{workload}: FSDP and DDP divide the work of training; inference is divided in other ways",
        ),
        (
            trial.offload.name == "activations",
            f"{workload} saves no activations that could wait on the host",
        ),
        (
            offloads and trial.precision.quantization != "none",
            "accelerate's hooks move plain weights, and lose bitsandbytes' quantisation state",
        ),
        (
            trial.method != "measure" and trial.model.family == "opt" and trial.kv_cache.name == "static",
            f"method={trial.method}: OPT slices its positions by the static cache's length, which is data",
        ),
        (
            offloads and trial.method != "measure",
            f"method={trial.method} does not know what accelerate's hooks move and when",
        ),
    ]
