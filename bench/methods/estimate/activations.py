"""What the closed form says of training's activations: what the forward keeps, and the loss.

In: a Trial, its architecture in numbers, its Platform. Out: bytes. Counted operation by operation over
transformers' modules with SDPA. Must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.methods.estimate.weights import BYTES
from bench.trial.axes import LEARNED_POSITIONS
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.shapes import Shape


def autocast_copy_bytes(trial: Trial, shape: Shape) -> int:
    """Autocast's 16-bit copies of the weights that it multiplies, which it keeps for the backward.

    Frozen weights are copied too. There are no copies of blocks that are recomputed, of quantised weights,
    and of the weights that FSDP gathers, which are 16-bit already.
    """
    precision = trial.precision
    if not precision.casts_weights or trial.fsdp.shards or precision.quantization != "none":
        return 0
    blocks = shape.in_linears if trial.checkpointing.name == "off" else 0
    return (shape.head + blocks) * 2


def activation_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Tensors that the blocks keep for the backward.

    With checkpointing: the input of each block, and all tensors of one block, which is recomputed.
    """
    tokens = trial.micro_batch_size * trial.seq_len
    layer_bytes = int(tokens * _bytes_per_token(trial, platform))
    if trial.checkpointing.name == "off":
        return shape.layers * layer_bytes
    kept_bytes = len(shape.blocks) * platform.allocated_bytes(
        tokens * _residual_bytes(trial) * trial.model.hidden_size
    )
    if trial.checkpointing.name == "selective":  # outputs of matmuls and of attention are kept
        outputs = sum(linear.outputs for linears, _ in shape.blocks for linear in linears)
        attended = len(shape.blocks) * trial.model.heads * trial.model.head_dim
        bytes_per_element = BYTES[trial.precision.compute_dtype]
        kept_bytes += int(tokens * (outputs + attended) * bytes_per_element)
    return shape.layers * kept_bytes + layer_bytes


def _residual_bytes(trial: Trial) -> int:
    """Bytes of one element of the residual stream between blocks, which has the weights' dtype."""
    return BYTES[trial.precision.param_dtype]


def _element_bytes(trial: Trial) -> int:
    """Bytes of one element of what the blocks' linears put out.

    A 4-bit linear returns its input's dtype: without autocast that of the residual stream.
    """
    if trial.precision.quantization == "nf4" and not trial.precision.runs_autocast:
        return max(BYTES[trial.precision.compute_dtype], _residual_bytes(trial))
    return BYTES[trial.precision.compute_dtype]


def _norms_widen(trial: Trial, platform: Platform) -> bool:
    """Whether a norm's output is wider than the product that reads it, so that autocast casts it.

    It is where the weights are wider, and where autocast runs LayerNorm in float32.
    """
    has_layer_norm = trial.model.family in LEARNED_POSITIONS and platform.autocast_widens
    return trial.precision.casts_weights or (trial.precision.runs_autocast and has_layer_norm)


@dataclass(frozen=True)
class LinearInput:
    """One tensor that linears of a block read.

    Attributes:
        width: elements for each token.
        readers: how many linears read it.
        producer: the operation that made it.
    """

    width: float
    readers: int
    producer: Literal["norm", "attention", "relu", "other"] = "other"

    @property
    def from_norm(self) -> bool:
        """Whether it is a norm's output: under autocast wider than the matmul that reads it."""
        return self.producer == "norm"

    @property
    def saved_by_producer(self) -> bool:
        """Whether the operation that made it keeps it for its own backward, where it is counted."""
        return self.producer in ("attention", "relu")


def _bytes_per_token(trial: Trial, platform: Platform) -> float:
    """Bytes that one layer (one block of each kind) keeps of each token for the backward.

    Counted operation by operation over transformers' modules with SDPA. In 16 bits LLaMA's are
    h (24 + 8 i/h), where h is the hidden size and i the intermediate size, as Korthikanti 2022 counts for
    its parts.
    """
    bytes_per_element, residual = _element_bytes(trial), _residual_bytes(trial)
    tokens, model = trial.micro_batch_size * trial.seq_len, trial.model

    def allocated_width(width: int) -> float:
        """`width` and each token's share of what the allocator adds to the tensor."""
        requested = tokens * width * bytes_per_element
        return platform.allocated_bytes(requested) / (tokens * bytes_per_element)

    h, i = allocated_width(model.hidden_size), allocated_width(model.intermediate_size)
    queries = allocated_width(model.heads * model.head_dim)
    keys = allocated_width(model.kv_heads * model.head_dim)
    log_sum_exp = 4 * model.heads  # attention keeps it in float32
    attention = bytes_per_element * (2 * queries + 2 * keys) + log_sum_exp
    # RMSNorm keeps its input in float32, and the normalised one where its own weight trains
    norm = 4 * h + (0 if trial.lora.enabled else residual * h)
    # GELU is written out, and its pow runs in float32 where autocast widens it
    gelu_element = 4 if trial.precision.runs_autocast and platform.autocast_widens else bytes_per_element
    # LayerNorm keeps its input as wide as it computes
    layer_norm = 4 if _norms_widen(trial, platform) else residual
    mlp_element = bytes_per_element
    if trial.precision.quantization == "nf4":  # a 4-bit linear returns its input's dtype, that of the norms
        mlp_element = gelu_element = max(bytes_per_element, residual)
    gelu = 4 * gelu_element * i

    to_qkv, to_gate_and_up = LinearInput(h, 3, "norm"), LinearInput(h, 2, "norm")
    to_one_linear = LinearInput(h, 1, "norm")
    to_output = LinearInput(queries, 1, "attention")
    match model.family:
        case "llama":  # the MLP keeps gate, its SiLU, and up
            kept = 2 * norm + attention + 3 * mlp_element * i
            return kept + _linear_input_bytes(
                trial, platform, (to_qkv, to_gate_and_up, to_output, LinearInput(i, 1))
            )
        case "opt":  # LayerNorm keeps its input; fc2 reads ReLU's output
            kept = 2 * layer_norm * h + attention + mlp_element * i
            to_output, to_fc2 = LinearInput(h, 1, "attention"), LinearInput(i, 1, "relu")
            return kept + _linear_input_bytes(trial, platform, (to_qkv, to_one_linear, to_output, to_fc2))
        case "gpt2":  # one matrix makes q, k and v
            kept = 2 * layer_norm * h + attention + gelu
            to_output = LinearInput(h, 1, "attention")
            return kept + _linear_input_bytes(
                trial, platform, (to_one_linear, to_one_linear, to_output, LinearInput(i, 1))
            )
        case _:  # an encoder block, and a decoder block with its cross-attention
            feed_forward = norm + gelu + 2 * mlp_element * i
            encoder = norm + attention + feed_forward
            decoder = 2 * (norm + attention) + feed_forward
            block_inputs = _linear_input_bytes(
                trial, platform, (to_qkv, to_gate_and_up, to_output, LinearInput(i, 1))
            )
            to_keys_and_values = LinearInput(h, 2, "norm")  # the encoder's output, of its last norm
            cross_inputs = _linear_input_bytes(
                trial, platform, (to_one_linear, to_keys_and_values, to_output)
            )
            return encoder + decoder + 2 * block_inputs + cross_inputs


def _linear_input_bytes(trial: Trial, platform: Platform, inputs: tuple[LinearInput, ...]) -> float:
    """Bytes for each token that a block's linears keep of their inputs.

    A matmul keeps its input once, however many linears read it. Under autocast each linear casts a copy of
    its own of a norm's output. A frozen matmul keeps nothing, but its adapter does: peft casts the input to
    the adapter's float32, one copy for each linear where the base is narrower; autocast casts that copy
    back to 16 bits.

    bitsandbytes' int8 matmul also keeps its 16-bit input (MatMul8bitLt), and its transposed int8 form where
    its weight trains. On CUDA peft sees that autocast is on, and casts no input of a quantised linear:
    adapter and int8 matmul keep one tensor where the input is 16-bit already.

    Args:
        trial: what to estimate.
        platform: what it would run on.
        inputs: each distinct tensor that linears of the block read, once.
    """
    bytes_per_element = _element_bytes(trial)
    read = sum(source.width * source.readers for source in inputs)
    int8 = trial.precision.quantization == "int8"
    adapter_bytes = BYTES[trial.adapter_dtype]
    autocast_narrows = trial.lora.enabled and trial.precision.runs_autocast and adapter_bytes == 4
    if autocast_narrows and int8 and platform.peft_sees_autocast:
        cast = sum(2 * source.width * source.readers for source in inputs if source.from_norm)
        # attention's output is counted with attention; ReLU's is counted here and with ReLU
        as_it_is = [source for source in inputs if source.producer not in ("norm", "attention")]
        return bytes_per_element * (cast + sum(source.width * source.readers for source in as_it_is))
    if autocast_narrows:
        return read * bytes_per_element * (2 if int8 else 1)
    if trial.lora.enabled and bytes_per_element < adapter_bytes:
        return read * (adapter_bytes + (bytes_per_element if int8 else 0))
    kept = read if int8 else 0.0
    for source in inputs:
        if source.saved_by_producer:
            continue
        copies = source.readers if source.from_norm and _norms_widen(trial, platform) else 1
        kept += source.width * bytes_per_element * copies
    return kept


def loss_bytes(trial: Trial, platform: Platform) -> tuple[int, int]:
    """Cross-entropy at the start of the backward: what the forward kept, and the backward's temporaries.

    The forward kept the log-softmax; the temporaries are its gradient and the logits' gradient. They take
    4 and 8 bytes per token and vocabulary entry, in float32, where the model casts its logits to float32.
    mT5 does not. CUDA's autocast then keeps the log-softmax in 16 bits and in float32, and the largest
    temporary is the gradient of the float32 one, which only the loss reads.
    """
    precision = trial.precision
    tokens = trial.micro_batch_size * trial.seq_len
    if trial.loss.chunked:  # one chunk at a time, recomputed
        tokens = -(-tokens // trial.loss.chunks)
    entries = tokens * trial.model.vocab_size
    in_float32 = platform.allocated_bytes(4 * entries)
    if trial.model.family != "mt5":
        return in_float32, 2 * in_float32
    in_compute_dtype = platform.allocated_bytes(BYTES[precision.compute_dtype] * entries)
    if precision.runs_autocast and platform.autocast_widens:
        return in_compute_dtype + in_float32, in_float32
    return in_compute_dtype, 2 * in_compute_dtype
