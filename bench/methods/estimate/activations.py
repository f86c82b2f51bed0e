"""Closed form, part two: what the forward keeps for the backward, and the cross-entropy loss.

In: a Trial and its Platform. Out: bytes. Counted operation by operation over
transformers' modules with SDPA. Must not import torch.
"""

from __future__ import annotations

from bench.methods.estimate.weights import (
    ADAPTER_BYTES,
    BYTES,
)
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.shapes import Shape


def _autocast_copies(trial: Trial, shape: Shape) -> int:
    """Autocast's 16-bit copies of the weights it multiplies, frozen ones too, kept for the backward: none
    of blocks that are computed again, of quantised weights, and of gathered ones, which are narrow."""
    precision = trial.precision
    if not precision.autocast or trial.fsdp.shards or precision.quantization != "none":
        return 0
    blocks = shape.in_linears if trial.checkpointing.name == "off" else 0
    return (shape.head + blocks) * 2


def _activation_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Tensors kept for the backward by the blocks; with checkpointing their inputs, and one block whole."""
    tokens = trial.micro_batch_size * trial.seq_len
    per_layer = int(tokens * _per_token(trial, platform))
    if trial.checkpointing.name == "off":
        return shape.layers * per_layer
    inputs = len(shape.blocks) * platform.allocated_bytes(
        tokens * _residual_bytes(trial) * trial.model.hidden_size
    )
    if trial.checkpointing.name == "selective":  # what matmuls and attention put out
        outputs = sum(linear.outputs for linears, _ in shape.blocks for linear in linears)
        attended = len(shape.blocks) * trial.model.heads * trial.model.head_dim
        each = BYTES[trial.precision.compute_dtype]
        inputs += int(tokens * (outputs + attended) * each)
    return shape.layers * inputs + per_layer


def _residual_bytes(trial: Trial) -> int:
    """Bytes of an element of the stream between blocks: that of the weights, wider under autocast."""
    return BYTES[trial.precision.param_dtype]


def _per_token(trial: Trial, platform: Platform) -> float:
    """Bytes a token and layer (one block of each kind) that the backward needs, counted operation by
    operation over transformers' modules with SDPA. In 16 bits LLaMA's is h (24 + 8 i/h), as Korthikanti
    2022 counts for its parts."""
    e, r = BYTES[trial.precision.compute_dtype], _residual_bytes(trial)
    tokens, model = trial.micro_batch_size * trial.seq_len, trial.model

    def wide_as(width: int) -> float:
        """A tensor's width, with what its block has more."""
        return platform.allocated_bytes(tokens * width * e) / (tokens * e)

    h, i = wide_as(model.hidden_size), wide_as(model.intermediate_size)
    width, kv = wide_as(model.heads * model.head_dim), wide_as(model.kv_heads * model.head_dim)
    statistics = 4 * model.heads  # attention's log-sum-exp
    attention = e * (2 * width + 2 * kv) + statistics
    # RMSNorm: its input in float32, and the normalised one where its own weight trains
    norm = 4 * h + (0 if trial.lora.enabled else r * h)
    wide = 4 if trial.precision.autocast and platform.autocast_widens else e  # pow runs in float32
    if trial.precision.quantization == "nf4":  # a 4-bit linear returns its input's dtype, that of the norms
        e = wide = max(e, r)
    gelu = 4 * wide * i
    match model.family:
        case "llama":  # gate, its SiLU, up; what goes into q k v, into gate and up, out of attention, down
            kept = 2 * norm + attention + 3 * e * i
            return kept + _inputs(trial, platform, (h, 3), (h, 2), (width, 1), (i, 1), own=2)
        case "opt":  # LayerNorm keeps its input; ReLU's output is fc2's input
            kept = 2 * r * h + attention + e * i
            return kept + _inputs(trial, platform, (h, 3), (h, 1), (h, 1), (i, 1), own=2, shared=2)
        case "gpt2":
            kept = 2 * r * h + attention + gelu
            return kept + _inputs(trial, platform, (h, 1), (h, 1), (h, 1), (i, 1), own=2)
        case _:  # an encoder block, and a decoder block with its cross-attention
            feed_forward = norm + gelu + 2 * e * i
            encoder = norm + attention + feed_forward
            decoder = 2 * (norm + attention) + feed_forward
            first = _inputs(trial, platform, (h, 3), (h, 2), (width, 1), (i, 1), own=2)
            cross = _inputs(trial, platform, (h, 1), (h, 2), (width, 1), own=2)
            return encoder + decoder + 2 * first + cross


def _inputs(
    trial: Trial, platform: Platform, *sources: tuple[float, int], own: int, shared: int = 0
) -> float:
    """Bytes a token of what the linears keep of their inputs.

    Args:
        trial: the trial.
        platform: what it would run on.
        sources: each distinct input: its width, and how many linears read it.
        own: how many of them, from the first, are outputs of norms, wider than the matmul under autocast.
        shared: how many of them, from the last, an operation before keeps anyway.

    A matmul keeps its input once however many read it. Under autocast each casts its own copy of what a
    norm puts out. A frozen matmul keeps nothing, its adapter does: peft casts the input to the adapter's
    float32, a copy for each linear where the base is narrower; under autocast that is cast back again.
    bitsandbytes' int8 matmul keeps its narrow input besides (MatMul8bitLt), and its transposed int8 form
    where it trains. On CUDA peft sees that autocast is on, and casts no quantised linear's input: adapter
    and int8 matmul keep one tensor of what is narrow already.
    """
    e = BYTES[trial.precision.compute_dtype]
    read = sum(width * readers for width, readers in sources)
    int8 = trial.precision.quantization == "int8"
    if trial.lora.enabled and trial.precision.autocast and int8 and platform.peft_sees_autocast:
        cast = sum(2 * width * readers for width, readers in sources[:own])
        return e * (cast + sum(width * readers for width, readers in sources[own + 1 :]))
    if trial.lora.enabled and trial.precision.autocast:
        return read * e * (2 if int8 else 1)
    if trial.lora.enabled and e < ADAPTER_BYTES:
        return read * (ADAPTER_BYTES + (e if int8 else 0))
    kept = read if int8 else 0.0
    for index, (width, readers) in enumerate(sources):
        if index == own or index >= len(sources) - shared:  # attention keeps its own output
            continue
        kept += width * e * (readers if trial.precision.autocast and index < own else 1)
    return kept


def _loss_bytes(trial: Trial, platform: Platform) -> tuple[int, int]:
    """Cross-entropy at the start of the backward, per token and vocabulary entry: the log-softmax that the
    forward kept, then its own gradient and the logits'. In float32, 4 and 8 bytes, where the model casts
    its logits up. mT5 does not: CUDA's autocast then keeps the log-softmax as it is and in float32, for
    the loss alone, whose gradient is the most that is there."""
    precision = trial.precision
    narrow = BYTES[precision.compute_dtype]
    entries = trial.micro_batch_size * trial.seq_len * trial.model.vocab_size
    wide = platform.allocated_bytes(4 * entries)
    if trial.model.family != "mt5":
        return wide, 2 * wide
    if precision.autocast and platform.autocast_widens:
        return platform.allocated_bytes(narrow * entries) + wide, wide
    return platform.allocated_bytes(narrow * entries), 2 * platform.allocated_bytes(narrow * entries)
