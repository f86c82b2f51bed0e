"""method=estimate: memory by arithmetic alone, in microseconds, by either of two formulas.

`rule_of_thumb` is what people reckon on paper; `closed_form` counts what the simulated step allocates, by
dtype, technique and architecture. Both are graded beside simulation and measurement (bench/grade.py).
Nothing here needs torch. Bytes throughout; GB and MB in docstrings are powers of ten.
"""

from __future__ import annotations

from typing import Any

from bench import estimate_inference
from bench.estimate_weights import (
    ADAPTER_BYTES,
    BYTES,
    adapter_bytes,
    adapters,
    columns,
    taken,
    weight_bytes,
)
from bench.shapes import Shape, shape_of
from bench.trial import Trial

RULE_OF_THUMB_CONTEXT_BYTES = 1_300_000_000  # HF "Model memory anatomy": 1.3 GB of kernels on a V100
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5}


def rule_of_thumb(trial: Trial) -> dict[str, Any]:
    """The arithmetic that goes round: everything in the precision's own bytes, AdamW twice the weights.

    Parameters in whole billions, rounded down, as the rule counts LLaMA's 6.7 as "6B": 24 GB in float32,
    6 GB in int8. Gradients the same, AdamW twice as much (48 GB, 12 GB). A CUDA context of 1.3 GB: 25.3
    GB in int8 without activations. Activations (hidden + ffn) x context x layers x bytes: 990 MB a
    sequence of 2048 in int8. It knows no LoRA, no checkpointing, no sharding and no logits. Of inference:
    weights and key-value cache.
    """
    model = trial.model
    whole = shape_of(model).parameters
    count = whole // 10**9 * 10**9 or whole
    quantised = _QUANTISED_BYTES.get(trial.precision.quantization)
    each = quantised or BYTES[trial.precision.compute_dtype]
    weights = int(count * each)
    if trial.workload.inference:
        held = {
            "parameter": weights,
            "kv_cache": estimate_inference.cache_bytes(trial, trial.cached_tokens),
        }
        context = {"context_bytes": RULE_OF_THUMB_CONTEXT_BYTES}
        return columns(held, trial.workload.name, whole, 0) | context
    activations = int(
        (model.hidden_size + model.intermediate_size)
        * trial.seq_len
        * model.layers
        * each
        * trial.micro_batch_size
    )
    held = {
        "parameter": weights,
        "gradient": weights,
        "optimizer": 2 * weights,
        "activation": activations,
        "temporary": 0,
        "input": 0,
    }
    return columns(held, "backward", whole, whole) | {"context_bytes": RULE_OF_THUMB_CONTEXT_BYTES}


def rule_of_thumb_batch(trial: Trial, device_bytes: int) -> int:
    """Sequences that fit a device by the rule: what is left after the rest, over one sequence's share.

    LLaMA "6B" in int8 on 80 GB: (80 - 25.3) / 0.99, which the rule calls about 50.
    """
    found = rule_of_thumb(trial)
    one = found["activation_bytes"] // trial.micro_batch_size
    rest = found["peak_allocated_bytes"] - found["activation_bytes"] + found["context_bytes"]
    return max(0, int((device_bytes - rest) // one))


def closed_form(trial: Trial, target: str) -> dict[str, Any]:
    """Memory at the end of the forward, in the backward of the loss and in the optimizer, whichever is
    most; of inference, see `estimate_inference`.

    The parts are documented where they are computed. What it leaves out, and simulation counts: temporaries
    inside blocks, and the order in which tensors come and go.

    Args:
        trial: what to estimate.
        target: the type of device it would run on: cpu, where the host is the device, or cuda.
    """
    if trial.workload.inference:
        return estimate_inference.closed_form(trial, target)
    shape = shape_of(trial.model)
    ranks = trial.world_size if trial.fsdp.shards else 1
    weights = weight_bytes(trial, shape, target)
    trainable = adapters(trial, shape) if trial.lora.enabled else shape.parameters
    gradients = _gradient_bytes(trial, shape, target)
    states = _state_bytes(trial, shape, trainable, gradients)
    on_host = trial.offload.name == "params" and target != "cpu"
    owned = [0 if on_host else part // ranks for part in (weights, gradients, states)]
    parameter, gradient, optimizer = owned
    gathered = _gathered_bytes(trial, shape, weights)
    kept = _activation_bytes(trial, shape, target) + _autocast_copies(trial, shape)
    if trial.offload.name == "activations" and target != "cpu":
        kept = 0
    log_softmax, loss = _loss_bytes(trial, target)
    phases = {
        "backward": {
            "parameter": parameter,
            "gradient": gradient if trial.grad_accum_steps > 1 or trial.fsdp.name == "no_shard" else 0,
            "optimizer": optimizer,
            "activation": kept + log_softmax,
            "temporary": gathered + loss,
        },
        "optimizer": {
            "parameter": parameter,
            "gradient": gradient,
            "optimizer": optimizer,
            "activation": 0,
            "temporary": 0 if on_host else _update_bytes(trial, shape, gradient, trainable, target),
        },
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    tokens = trial.micro_batch_size * trial.seq_len * trial.grad_accum_steps
    held = phases[phase] | {"input": 8 * tokens * (2 if trial.model.encoder_decoder else 1)}
    total = shape.parameters + (trainable if trial.lora.enabled else 0)
    return columns(held, phase, total, trainable)


def _gradient_bytes(trial: Trial, shape: Shape, target: str) -> int:
    """A gradient for each tensor that trains, in its dtype."""
    if trial.lora.enabled:
        return adapter_bytes(trial, shape, target)
    each = BYTES[trial.precision.param_dtype]
    return sum(count * taken(elements * each, target) for elements, count in shape.tensors())


def _state_bytes(trial: Trial, shape: Shape, trainable: int, gradients: int) -> int:
    """Optimizer state: AdamW two moments in the parameters' dtype (Loshchilov 2019); 8-bit AdamW a byte
    each and a float32 scale per 256 (Dettmers 2022, 8-bit optimizers); Adafactor a row and a column
    (Shazeer 2018); SGD a momentum, if any."""
    name = trial.optimizer.name
    if name.startswith("adamw_8bit"):
        return 0 if name.endswith("paged") else int(trainable * 2 * (1 + 4 / 256))
    if name == "sgd":
        return gradients if trial.optimizer.momentum else 0
    if name == "adafactor":
        edges = sum(linear.inputs + linear.outputs for group, _ in shape.blocks for linear in group)
        return shape.layers * edges * 4 + (trial.model.vocab_size + trial.model.hidden_size) * 8
    return 2 * gradients


def _update_bytes(trial: Trial, shape: Shape, gradient: int, trainable: int, target: str) -> int:
    """Temporaries of the update: foreach makes the whole denominator at once, the loop that of the largest
    tensor, fused none."""
    name = trial.optimizer.name
    if name == "adamw_foreach" or (name == "adamw" and target != "cpu"):
        return gradient
    if name in ("adamw_fused", "sgd"):
        return 0
    if trial.lora.enabled:
        largest = trial.lora.rank * trial.model.intermediate_size
    else:
        largest = max(shape.head, *(linear.weights for linears, _ in shape.blocks for linear in linears))
    if name.startswith("adamw_8bit"):
        return 0 if target != "cpu" else 5 * largest * 4  # its CPU kernel expands all that it touches
    return 2 * largest * gradient // max(trainable, 1)


def _gathered_bytes(trial: Trial, shape: Shape, weights: int) -> int:
    """What FSDP holds beside its shards (Zhao 2023): with full_shard the outside and two blocks, with
    shard_grad_op everything; in the compute dtype."""
    if not trial.fsdp.shards:
        return 0
    narrow = BYTES[trial.precision.compute_dtype] / BYTES[trial.precision.param_dtype]
    scale = narrow if trial.precision.autocast else 1.0
    outside = int(shape.outside * BYTES[trial.precision.param_dtype])
    if trial.fsdp.name == "shard_grad_op":
        return int(weights * scale)
    return int((outside + 2 * (weights - outside) / max(shape.layers * len(shape.blocks), 1)) * scale)


def _autocast_copies(trial: Trial, shape: Shape) -> int:
    """Autocast's 16-bit copies of the weights it multiplies, frozen ones too, kept for the backward: none
    of blocks that are computed again, of quantised weights, and of gathered ones, which are narrow."""
    precision = trial.precision
    if not precision.autocast or trial.fsdp.shards or precision.quantization != "none":
        return 0
    blocks = shape.in_linears if trial.checkpointing.name == "off" else 0
    return (shape.head + blocks) * 2


def _activation_bytes(trial: Trial, shape: Shape, target: str) -> int:
    """Tensors kept for the backward by the blocks; with checkpointing their inputs, and one block whole."""
    tokens = trial.micro_batch_size * trial.seq_len
    per_layer = int(tokens * _per_token(trial, target))
    if trial.checkpointing.name == "off":
        return shape.layers * per_layer
    inputs = len(shape.blocks) * taken(tokens * _residual_bytes(trial) * trial.model.hidden_size, target)
    if trial.checkpointing.name == "selective":  # what matmuls and attention put out
        outputs = sum(linear.outputs for linears, _ in shape.blocks for linear in linears)
        attended = len(shape.blocks) * trial.model.heads * trial.model.head_dim
        each = BYTES[trial.precision.compute_dtype]
        inputs += int(tokens * (outputs + attended) * each)
    return shape.layers * inputs + per_layer


def _residual_bytes(trial: Trial) -> int:
    """Bytes of an element of the stream between blocks: that of the weights, wider under autocast."""
    return BYTES[trial.precision.param_dtype]


def _per_token(trial: Trial, target: str) -> float:
    """Bytes a token and layer (one block of each kind) that the backward needs, counted operation by
    operation over transformers' modules with SDPA. In 16 bits LLaMA's is h (24 + 8 i/h), as Korthikanti
    2022 counts for its parts."""
    e, r = BYTES[trial.precision.compute_dtype], _residual_bytes(trial)
    tokens, model = trial.micro_batch_size * trial.seq_len, trial.model

    def wide_as(width: int) -> float:
        """A tensor's width, with what its block has more."""
        return taken(tokens * width * e, target) / (tokens * e)

    h, i = wide_as(model.hidden_size), wide_as(model.intermediate_size)
    width, kv = wide_as(model.heads * model.head_dim), wide_as(model.kv_heads * model.head_dim)
    statistics = 4 * model.heads  # attention's log-sum-exp
    attention = e * (2 * width + 2 * kv) + statistics
    # RMSNorm: its input in float32, and the normalised one where its own weight trains
    norm = 4 * h + (0 if trial.lora.enabled else r * h)
    wide = 4 if trial.precision.autocast and target != "cpu" else e  # CUDA's autocast runs pow in float32
    if trial.precision.quantization == "nf4":  # a 4-bit linear returns its input's dtype, that of the norms
        e = wide = max(e, r)
    gelu = 4 * wide * i
    match model.family:
        case "llama":  # gate, its SiLU, up; what goes into q k v, into gate and up, out of attention, down
            kept = 2 * norm + attention + 3 * e * i
            return kept + _inputs(trial, target, (h, 3), (h, 2), (width, 1), (i, 1), own=2)
        case "opt":  # LayerNorm keeps its input; ReLU's output is fc2's input
            kept = 2 * r * h + attention + e * i
            return kept + _inputs(trial, target, (h, 3), (h, 1), (h, 1), (i, 1), own=2, shared=2)
        case "gpt2":
            kept = 2 * r * h + attention + gelu
            return kept + _inputs(trial, target, (h, 1), (h, 1), (h, 1), (i, 1), own=2)
        case _:  # an encoder block, and a decoder block with its cross-attention
            feed_forward = norm + gelu + 2 * e * i
            encoder = norm + attention + feed_forward
            decoder = 2 * (norm + attention) + feed_forward
            first = _inputs(trial, target, (h, 3), (h, 2), (width, 1), (i, 1), own=2)
            return encoder + decoder + 2 * first + _inputs(trial, target, (h, 1), (h, 2), (width, 1), own=2)


def _inputs(trial: Trial, target: str, *sources: tuple[float, int], own: int, shared: int = 0) -> float:
    """Bytes a token of what the linears keep of their inputs.

    Args:
        trial: the trial.
        target: the type of device.
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
    if trial.lora.enabled and trial.precision.autocast and int8 and target != "cpu":
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


def _loss_bytes(trial: Trial, target: str) -> tuple[int, int]:
    """Cross-entropy at the start of the backward, per token and vocabulary entry: the log-softmax that the
    forward kept, then its own gradient and the logits'. In float32, 4 and 8 bytes, where the model casts
    its logits up. mT5 does not: CUDA's autocast then keeps the log-softmax as it is and in float32, for
    the loss alone, whose gradient is the most that is there."""
    precision = trial.precision
    narrow = BYTES[precision.compute_dtype]
    entries = trial.micro_batch_size * trial.seq_len * trial.model.vocab_size
    wide = taken(4 * entries, target)
    if trial.model.family != "mt5":
        return wide, 2 * wide
    if precision.autocast and target != "cpu":
        return taken(narrow * entries, target) + wide, wide
    return taken(narrow * entries, target), 2 * taken(narrow * entries, target)


def estimate(trial: Trial, target: str) -> dict[str, Any]:
    """The row's columns by the trial's formula; bytes.

    Args:
        trial: what to estimate.
        target: the type of device it would run on: cpu or cuda.
    """
    return rule_of_thumb(trial) if trial.formula == "rule_of_thumb" else closed_form(trial, target)
