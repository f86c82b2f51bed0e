"""Combinations of valid values that cannot exist: each a rule with its reason, one true sentence.

In: a trial, and the platform that it would run on. Out: the reason of the first rule that applies. The door
does not ask: a skip is a row. The worker does, once it knows its device, and so does a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from bench.trial.adaptable import foreign_targets
from bench.trial.axes import FAMILIES, LEARNED_POSITIONS
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
    return next(_reasons(trial, platform, device_count), None)


def _reasons(trial: Trial, platform: Platform, device_count: int) -> Iterator[str]:
    """The reason of each rule that applies. A row has the first, so the order of the rules matters."""
    yield from _of_method(trial, platform)
    yield from _of_positions(trial)
    yield from _of_autocast(trial)
    yield from _of_quantised_training(trial)
    yield from _of_adapters(trial)
    yield from _of_sharding(trial)
    yield from _of_selective_checkpointing(trial)
    if trial.loop.is_sft:
        yield from _of_sft(trial, platform)
    if trial.loop.is_trainer:
        yield from _of_trainer(trial, platform)
    yield from _of_device(trial, platform, device_count)
    if trial.workload.inference:
        yield from _of_inference(trial)
        yield from _of_inference_support(trial)
    else:
        yield from _of_training(trial)


def _of_method(trial: Trial, platform: Platform) -> Iterator[str]:
    if trial.method != "measure" and not platform.is_modelled:
        yield f"method={trial.method} knows what a step does on cpu and cuda, not on {platform.device_type}"
    if trial.method == "estimate" and trial.model.by_config:
        yield (
            f"the formulas know {', '.join(FAMILIES)} by their numbers; {trial.model.label} is "
            "given by its transformers configuration: method=simulate runs its code"
        )


def _of_positions(trial: Trial) -> Iterator[str]:
    learned = trial.model.family in LEARNED_POSITIONS
    tokens = max(trial.seq_len, trial.cached_tokens)
    if learned and tokens > trial.model.max_positions:
        yield (
            f"{trial.model.name} has {trial.model.max_positions} learned positions, fewer than "
            f"{tokens} tokens (seq_len={trial.seq_len})"
        )


def _of_autocast(trial: Trial) -> Iterator[str]:
    precision = trial.precision
    if precision.autocast and precision.compute_dtype == "float32":
        yield "autocast computes in 16 bits: choose precision=bf16 or fp16, or leave precision.autocast out"
    if precision.autocast is False and precision.is_mixed and precision.quantization == "none":
        yield (
            f"without autocast {precision.param_dtype} weights compute in {precision.param_dtype}: choose "
            "precision=fp32, or leave precision.autocast out"
        )
    trained = trial.adapter_dtype if trial.lora.enabled else precision.param_dtype
    if precision.loss_scaling and trained == "float16":
        yield (
            "GradScaler refuses 16-bit gradients: train adapters in 32 bits (lora=on lora.dtype=float32), "
            "or choose precision=fp16"
        )


def _of_quantised_training(trial: Trial) -> Iterator[str]:
    if trial.precision.quantization == "nf4" and not trial.lora.enabled and not trial.workload.inference:
        yield "nf4 weights are frozen 4-bit values that no gradient can update; train adapters with lora=on"


def _of_adapters(trial: Trial) -> Iterator[str]:
    foreign = foreign_targets(trial)
    if foreign:
        yield f"lora.targets: {trial.model.name} has no module called {', '.join(foreign)}"


def _of_sharding(trial: Trial) -> Iterator[str]:
    if trial.fsdp.name == "off" and trial.fsdp.world_size > 1:
        yield (
            f"fsdp=off runs one process, and fsdp.world_size={trial.fsdp.world_size} asks for more: choose "
            "fsdp=no_shard for replicas (DDP), fsdp=full_shard for shards, or leave fsdp.world_size out"
        )
    if trial.fsdp.shards and trial.precision.quantization == "int8":
        yield (
            "fully_shard cannot shard bitsandbytes int8 weights: a sharded parameter loses its "
            "quantisation state (CB, SCB)"
        )
    if trial.fsdp.shards and trial.optimizer.eight_bit:
        yield (
            "bitsandbytes 8-bit optimizers update raw storage and do not know sharded parameters (DTensor)"
        )
    if trial.fsdp.shards and trial.optimizer.name == "adafactor":
        yield "torch's Adafactor takes norms in place, which sharded parameters (DTensor) do not allow"
    if trial.offload.name == "params" and not trial.fsdp.shards and not trial.workload.inference:
        yield (
            "offload=params is FSDP's CPU offload: it needs fsdp=full_shard or shard_grad_op "
            "(fsdp.world_size=1 is enough)"
        )


def _of_selective_checkpointing(trial: Trial) -> Iterator[str]:
    if trial.checkpointing.name == "selective" and trial.precision.quantization == "int8":
        yield (
            "bitsandbytes keeps the inputs of int8 matmuls on its own autograd context, where "
            "selective checkpointing cannot free them"
        )


def _of_trainer(trial: Trial, platform: Platform) -> Iterator[str]:
    """What transformers' Trainer cannot be told, or does not do there."""
    kind = platform.device_type
    if trial.workload.inference:
        yield f"workload={trial.workload.name} trains nothing: loop={trial.loop.name} is of workload=train"
    if trial.method == "estimate":
        yield "the formulas know the bare loop: method=simulate runs the Trainer's code"
    if trial.precision.loss_scaling and not platform.accelerate_runs_fp16:
        yield f"accelerate ignores fp16=True on device={kind} and trains in the weights' dtype: choose bf16"
    if trial.fsdp.shards and not platform.accelerate_shards:
        yield (
            f"accelerate knows no FSDP on device={kind}: with fsdp=True the Trainer replicates the model "
            "there (DDP); choose fsdp=no_shard, or loop=bare"
        )
    if trial.fsdp.shards and trial.optimizer.name == "adamw_foreach":
        yield (
            "TrainingArguments have no word for optimizer=adamw_foreach, and under FSDP it takes no "
            "optimizer but its own: choose adamw, which is foreach on a GPU"
        )
    if trial.checkpointing.name == "selective":
        yield "TrainingArguments have no word for checkpointing=selective, whose policy is a function"
    if trial.offload.name == "activations":
        yield "TrainingArguments have no word for offload=activations: they can offload checkpoints alone"
    if trial.keep_outputs:
        yield "TrainingArguments have no word for keep_outputs: the Trainer keeps none for its backward"


def _of_sft(trial: Trial, platform: Platform) -> Iterator[str]:
    """What TRL's SFTTrainer does otherwise than the Trainer, and what is not known of it."""
    if find_spec("trl") is None:
        yield "loop=sft is TRL's SFTTrainer, which is not installed: it needs pip install -e '.[sft]'"
    if trial.model.encoder_decoder:
        yield "TRL's SFTTrainer trains models that predict the next token: an encoder-decoder does not"
    if not trial.loss.chunked and not trial.workload.inference:
        yield "TRL's SFTTrainer computes its loss without ever holding all logits: choose loss=chunked"
    if trial.method == "simulate" and platform.runs_cuda_kernels:
        yield "TRL's loss is a Triton kernel on a GPU, which simulation does not know: measure it"
    if trial.lora.enabled and trial.quantises_weights and trial.adapter_dtype != "bfloat16":
        yield (
            "TRL's SFTTrainer trains the adapters of a quantised base in bfloat16: choose lora.dtype=auto "
            "precision.compute_dtype=bfloat16"
        )
    if trial.checkpointing.name == "selective" or trial.offload.name == "activations":
        yield (
            "SFTConfig's selective checkpointing and offloading of activations are TRL's own, others than "
            "checkpointing=selective and offload=activations: choose loop=bare"
        )


def _of_device(trial: Trial, platform: Platform, device_count: int) -> Iterator[str]:
    kind = platform.device_type
    if trial.optimizer.name == "adamw_8bit_paged" and not platform.has_unified_memory:
        yield f"paged optimizers use CUDA unified memory, which device={kind} does not have"
    own_devices = trial.method == "measure" and not platform.ranks_share_device
    if own_devices and trial.world_size > device_count:
        yield (
            f"fsdp.world_size={trial.world_size} needs as many {kind} devices, and this "
            f"machine has {device_count}"
        )


def _of_updates_in_backward(trial: Trial) -> Iterator[str]:
    """What needs all gradients at once, where each is gone as soon as it was used."""
    if not trial.optimizer.in_backward:
        return
    word = "optimizer.in_backward=true updates a parameter as soon as its gradient is ready, and"
    if trial.grad_accum_steps > 1:
        yield f"{word} no gradient stays to accumulate: grad_accum_steps=1"
    if trial.max_grad_norm is not None:
        yield f"{word} the norm of all gradients is known only at the end: leave max_grad_norm out"
    if trial.precision.loss_scaling:
        yield f"{word} GradScaler looks at all gradients before: choose bf16 in place of fp16"
    if trial.fsdp.name != "off":
        yield f"{word} FSDP and DDP reduce gradients after that"


def _of_training(trial: Trial) -> Iterator[str]:
    yield from _of_updates_in_backward(trial)
    if trial.keep_outputs and trial.loss.chunked:
        yield "keep_outputs keeps logits, and under loss=chunked the model returns none"
    if trial.loss.chunked and trial.model.encoder_decoder:
        yield "loss=chunked is of models that predict the next token, and an encoder-decoder does not"
    if trial.kv_cache.name != "dynamic":
        yield "training keeps no keys and values: kv_cache is of workload=prefill and decode"
    if trial.offload.name == "disk":
        yield (
            "offload=disk keeps weights that nobody changes on disk: it is for workload=prefill and decode"
        )


def _of_inference(trial: Trial) -> Iterator[str]:
    """What belongs to training alone, and what inference does not have here."""
    workload = f"workload={trial.workload.name}"
    if trial.model.encoder_decoder:
        yield f"{workload} is of decoders: an encoder-decoder has two sequences and two kinds of cache"
    if trial.precision.autocast:
        yield f"{workload} runs without autocast: choose fp16_pure or bf16_pure"
    if trial.precision.is_mixed and trial.precision.quantization == "none":
        yield (
            f"mixed precision keeps 32-bit weights for the optimizer, and {workload} has none: "
            f"choose fp16_pure or bf16_pure"
        )
    if trial.lora.enabled:
        yield f"{workload}: adapters are merged into the weights before, and cost nothing"
    if trial.checkpointing.name != "off":
        yield f"{workload} keeps no activation for a backward: there is nothing to recompute"
    if trial.optimizer.name != "adamw":
        yield f"{workload} has no optimizer"
    if trial.loss.chunked:
        yield f"{workload} computes no loss"
    if trial.max_grad_norm is not None or trial.keep_outputs or trial.optimizer.in_backward:
        yield f"{workload} has no backward for max_grad_norm, keep_outputs or optimizer.in_backward"
    if trial.grad_accum_steps > 1:
        yield f"{workload} has no gradients to accumulate"
    if trial.fsdp.name != "off":
        yield f"{workload}: FSDP and DDP divide the work of training; inference is divided in other ways"
    if trial.offload.name == "activations":
        yield f"{workload} saves no activations that could wait on the host"


def _of_inference_support(trial: Trial) -> Iterator[str]:
    """What some methods, or accelerate's hooks, cannot do with a model that does not train."""
    offloads = trial.offload.name in ("params", "disk")
    if offloads and trial.precision.quantization != "none":
        yield "accelerate's hooks move plain weights, and lose bitsandbytes' quantisation state"
    if trial.method != "measure" and trial.model.family == "opt" and trial.kv_cache.name == "static":
        yield f"method={trial.method}: OPT slices its positions by the static cache's length, which is data"
    if offloads and trial.method != "measure":
        yield f"method={trial.method} does not know what accelerate's hooks move and when"
