"""The closed form of inference: weights, the key-value cache, and what one forward holds beside them.

In: a Trial of prefill or decode, and its Platform. Out: the row's memory columns, in bytes. The peak is in
the last block, where the cache is fullest, or after it: `_moments` goes through both in the order in which
transformers' code makes tensors and frees them, for the prompt's forward and for the last decoded token's.
Must not import torch, except inside a function to ask how this CPU multiplies 16-bit floats and int8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.methods.estimate.weights import BYTES, estimate_columns, weight_bytes
from bench.trial.columns import Columns
from bench.trial.platform import CPU, Platform
from bench.trial.spec import Trial
from bench.workload.shapes import Shape, shape_of

_FLOAT32_BYTES = 4
_NF4_BLOCK = 64  # elements that share a scale

Moment = tuple[int, int]  # bytes of the cache, and of temporaries


def cache_bytes(trial: Trial, tokens: int, platform: Platform = CPU) -> int:
    """Bytes of all keys and values: 2 x layers x kv_heads x head_dim x tokens x sequences x bytes.

    Args:
        trial: whose model and sequences.
        tokens: how many tokens of each sequence are in the cache.
        platform: whose allocator counts.
    """
    model = trial.model
    token_bytes = model.kv_heads * model.head_dim * BYTES[trial.precision.compute_dtype]
    return 2 * model.layers * platform.allocated_bytes(token_bytes * tokens * trial.micro_batch_size)


@dataclass(frozen=True)
class _Forward:
    """One forward of a trial: `tokens` of each sequence are new, and `cached` are in the cache after it.

    Methods give bytes, as the platform's allocator counts them.
    """

    trial: Trial
    shape: Shape
    platform: Platform
    tokens: int
    cached: int

    @property
    def rows(self) -> int:
        """New tokens of all sequences: the rows of what the matrices multiply."""
        return self.trial.micro_batch_size * self.tokens

    @property
    def bytes_per_element(self) -> int:
        """Bytes of one element in the compute dtype."""
        return BYTES[self.trial.precision.compute_dtype]

    def of_width(self, width: int) -> int:
        """Bytes of a tensor with `width` elements, in the compute dtype, for each new token."""
        return self.allocated(self.rows * width * self.bytes_per_element)

    def allocated(self, size: float) -> int:
        """What the allocator counts for a tensor of `size` bytes."""
        return self.platform.allocated_bytes(size)

    def linear(self, inputs: int, outputs: int) -> int:
        """Bytes that a block's matrix of [outputs, inputs] needs while it multiplies, its result included.

        int8 (Dettmers 2022): `_int8`, and `_int8_in_python` where bitsandbytes' kernels are Python. nf4
        first dequantises its scales, one for every 64 elements, then the weight.
        """
        weight, result = inputs * outputs, self.of_width(outputs)
        match self.trial.precision.quantization:
            case "int8":
                python = self.platform.bitsandbytes_in_python
                return self._int8_in_python(inputs, outputs) if python else self._int8(inputs, outputs)
            case "nf4":
                scales = weight // _NF4_BLOCK * _FLOAT32_BYTES if self.trial.precision.double_quant else 0
                return scales + self.allocated(weight * self.bytes_per_element) + result
            case _:
                return result

    def _int8(self, inputs: int, outputs: int) -> int:
        """Bytes of an int8 matmul whose kernels are native: the larger of rounding and multiplying.

        Rounding holds the input in float16 and in 8 bits, its absolute values, and which of them are
        outliers. Multiplying holds the input in 8 bits, the 32-bit product, and the result, first in
        float16. Both hold a scale for each row. No column is an outlier, as in simulation.
        """
        read, made = self.rows * inputs, self.rows * outputs  # elements
        rounding = self.allocated(read) + 2 * self.allocated(2 * read) + self.allocated(read)
        multiplying = self.allocated(read) + self.allocated(4 * made) + self.allocated(2 * made)
        if self.trial.precision.compute_dtype == "float16":
            rounding -= self.allocated(2 * read)  # the input is float16 already
        else:
            multiplying += self.of_width(outputs)
        return self.allocated(self.rows * _FLOAT32_BYTES) + max(rounding, multiplying)

    def _int8_in_python(self, inputs: int, outputs: int) -> int:
        """Bytes of an int8 matmul whose kernels are operations of torch, as bitsandbytes' are on a CPU.

        It rounds and scales in float32: two tensors beside the 16-bit input, and three beside the product.
        A CPU without instructions for int8 multiplies input and weight in float32.
        """
        from bench.machine.cpu_kernels import int8_is_widened  # imports torch, which no other formula needs

        rounding = self.rows * (2 * _FLOAT32_BYTES + 2) * inputs
        scaling = self.rows * (inputs + 4 * _FLOAT32_BYTES * outputs)
        most = max(rounding, scaling)
        if int8_is_widened():
            widened = _FLOAT32_BYTES * (self.rows * inputs + inputs * outputs + self.rows * outputs)
            most = max(most, self.rows * inputs + widened)
        row_scales = self.rows * _FLOAT32_BYTES
        return row_scales + most


def closed_form(trial: Trial, platform: Platform) -> Columns:
    """The row's columns at the highest moment of the prompt's forward or of the last decoded token's.

    Args:
        trial: what to estimate, of prefill or decode.
        platform: what it would run on: CPU or CUDA.
    """
    shape = shape_of(trial.model)
    static = trial.kv_cache.name == "static"
    cached = trial.cached_tokens if static else trial.seq_len
    prompt = _Forward(trial, shape, platform, trial.seq_len, cached)
    phases = {"prefill": _highest(prompt)}
    if trial.workload.name == "decode":
        last_token = _Forward(trial, shape, platform, 1, trial.cached_tokens)
        phases["decode"] = _highest(last_token)
    phase = max(phases, key=lambda name: sum(phases[name]))
    cache, temporary = phases[phase]
    held = {
        "parameter": weight_bytes(trial, shape, platform) + _nf4_table_bytes(trial, shape, platform),
        "kv_cache": cache,
        "temporary": temporary,
        "input": 8 * trial.micro_batch_size * trial.seq_len,  # token ids are int64
    }
    return estimate_columns(held, phase, shape.parameters, 0)


def _highest(forward: _Forward) -> Moment:
    """The moment with the most bytes."""
    return max(_moments(forward), key=sum)


def _nf4_table_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Bytes that all nf4 matrices keep beside weights and scales.

    Each keeps the 16 values of its code and, where its scales are quantised too, the 256 values of the
    scales' code and the scales' mean: each a float32 tensor of its own.
    """
    if trial.precision.quantization != "nf4":
        return 0
    tables = (16, 256, 1) if trial.precision.double_quant else (16,)
    matrices = shape.layers * sum(len(linears) for linears, _ in shape.blocks)
    return matrices * sum(platform.allocated_bytes(count * _FLOAT32_BYTES) for count in tables)


def _moments(forward: _Forward) -> Iterator[Moment]:
    """The last block and the head, moment by moment.

    For as long as blocks run the model's own code holds the embeddings, the block's input, and the rotary
    table or the learned positions' embeddings. RMSNorm widens its input to float32, and holds a second
    tensor of that size: the square, or the normalised form.
    """
    trial, model = forward.trial, forward.trial.model
    hidden = forward.of_width(model.hidden_size)
    cache = cache_bytes(trial, forward.cached, forward.platform)
    held = hidden * (2 if model.layers > 1 else 1)
    if model.family == "llama":
        held += 2 * forward.tokens * model.head_dim * forward.bytes_per_element
    else:
        held += hidden // (1 if model.family == "opt" else trial.micro_batch_size)
    norm = 2 * forward.rows * model.hidden_size * _FLOAT32_BYTES if model.family == "llama" else hidden
    yield from _attention(forward, held, cache)
    yield cache, held + hidden + norm
    # two tensors beside it: the residual stream and the normed input; GPT-2 still holds attention's output
    beside_mlp = held + (3 if model.family == "gpt2" else 2) * hidden
    yield from ((cache, beside_mlp + inner) for inner in _feed_forward(forward))
    yield cache, held + norm
    yield cache, hidden + _head(forward)


def _attention(forward: _Forward, held: int, cache: int) -> Iterator[Moment]:
    """The last block's attention: projections, rotation, the cache's growth, attention and its output.

    In the prompt's forward this layer's cache appears, whole where it is static. A dynamic cache is copied
    into one that holds a token more, first keys, then values: while the values are copied, the old values
    are there beside the new keys and values.

    Args:
        forward: the forward that it is part of.
        held: bytes of temporaries that are there throughout.
        cache: bytes of all layers' cache after this forward.
    """
    trial, model = forward.trial, forward.trial.model
    h, q_width, kv_width = model.hidden_size, model.heads * model.head_dim, model.kv_heads * model.head_dim
    q, kv = forward.of_width(q_width), forward.of_width(kv_width)
    layer_cache = cache // model.layers
    dynamic = trial.kv_cache.name == "dynamic"
    prompt = forward.tokens == trial.seq_len
    growth = layer_cache if prompt else 2 * kv * dynamic
    before = cache - growth
    base = held + forward.of_width(h)  # the normed input
    if model.family == "gpt2":  # one matrix makes q, k and v
        yield before, base + forward.linear(h, 3 * q_width)
    else:
        yield before, base + forward.linear(h, q_width)
        yield before, base + q + kv + forward.linear(h, kv_width)
    if model.family == "llama":  # q and k times cosine, their halves swapped, those times sine
        yield before, base + q + 2 * kv + max(3 * q, q + 3 * kv)
    old_values = 0 if prompt or not dynamic else layer_cache // 2 - kv
    yield cache + old_values, base + q + 2 * kv
    attended = base + q + forward.of_width(q_width)
    yield cache, attended + _FLOAT32_BYTES * model.heads * forward.rows  # the log-sum-exp
    yield cache, attended + forward.linear(q_width, h)


def _feed_forward(forward: _Forward) -> Iterator[int]:
    """Bytes that the MLP holds at each of its operations, beside its normed input.

    LLaMA: gate, its SiLU, up, their product, down. OPT: the first matrix, ReLU (the normed input is freed
    before it), the second matrix. GPT-2 writes GELU out: half of the input, the cube, and the cube's
    multiple are there beside the input.
    """
    model = forward.trial.model
    h, i = model.hidden_size, model.intermediate_size
    inner = forward.of_width(i)
    yield forward.linear(h, i)
    yield inner + forward.linear(i, h)
    match model.family:
        case "llama":
            yield inner + forward.linear(h, i)
            yield 3 * inner
        case "opt":
            yield 2 * inner - forward.of_width(h)
        case _:
            yield 4 * inner


def _head(forward: _Forward) -> int:
    """Bytes of the last position's logits, and of the copies that oneDNN makes for them.

    The last positions of several prompts do not lie side by side in memory, so torch makes their logits by
    a batched matmul. On a CPU with instructions for the 16-bit compute dtype oneDNN copies the head's
    weight for it, once for each sequence (memory/hidden_allocations.py).
    """
    trial, model = forward.trial, forward.trial.model
    sequences = trial.micro_batch_size
    logits = sequences * model.vocab_size * BYTES[trial.precision.param_dtype]
    batched = sequences > 1 and forward.tokens > 1
    if not (batched and forward.platform.bmm_copies_operands):
        return logits
    from bench.machine.cpu_kernels import onednn_multiplies  # imports torch, which no other formula needs

    if not onednn_multiplies(trial.precision.compute_dtype):
        return logits
    return logits + sequences * model.hidden_size * model.vocab_size * forward.bytes_per_element
