"""Memory of inference by arithmetic: weights, the key-value cache, and what one forward holds beside them.

The last block decides, since the cache is fullest there. `_moments` goes through it, and what comes after
it, in the order in which transformers' code makes tensors and lets them go; the peak is the highest moment
of the prompt's forward and of the last decoded token's. torch is asked one thing, how this CPU
multiplies 16-bit floats and int8. Bytes throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.methods.estimate.weights import BYTES, estimate_columns, weight_bytes
from bench.trial.columns import Columns
from bench.trial.platform import CPU, Platform
from bench.trial.spec import Trial
from bench.workload.shapes import Shape, shape_of

_FLOAT = 4  # bytes
_BLOCK = 64  # elements that share a scale in nf4

Moment = tuple[int, int]  # the cache, and temporaries


def cache_bytes(trial: Trial, tokens: int, platform: Platform = CPU) -> int:
    """Keys and values of every sequence: 2 x layers x kv_heads x head_dim x tokens x bytes, of each."""
    model = trial.model
    each = model.kv_heads * model.head_dim * BYTES[trial.precision.compute_dtype]
    return 2 * model.layers * platform.allocated_bytes(each * tokens * trial.micro_batch_size)


@dataclass(frozen=True)
class _Forward:
    """One forward of a trial: `tokens` of each sequence are new, and `cached` are in the cache after it."""

    trial: Trial
    shape: Shape
    platform: Platform
    tokens: int
    cached: int

    @property
    def rows(self) -> int:
        """Tokens of all sequences: rows of what the matrices multiply."""
        return self.trial.micro_batch_size * self.tokens

    @property
    def bytes_per_element(self) -> int:
        """Bytes of one element in the compute dtype."""
        return BYTES[self.trial.precision.compute_dtype]

    def wide(self, width: int) -> int:
        """Bytes of a tensor with `width` numbers for each new token."""
        return self.taken(self.rows * width * self.bytes_per_element)

    def taken(self, count: float) -> int:
        """What a tensor of so many bytes takes."""
        return self.platform.allocated_bytes(count)

    def linear(self, inputs: int, outputs: int) -> int:
        """What a block's matrix of [outputs, inputs] holds while it multiplies, its result included.

        int8 (Dettmers 2022), see `_int8`. nf4 dequantises the weight, its scales of 64 elements before it.
        """
        weight, made = inputs * outputs, self.wide(outputs)
        match self.trial.precision.quantization:
            case "int8":
                python = self.platform.bitsandbytes_in_python
                return self._int8_in_python(inputs, outputs) if python else self._int8(inputs, outputs)
            case "nf4":
                scales = weight // _BLOCK * _FLOAT if self.trial.precision.double_quant else 0
                return scales + self.taken(weight * self.bytes_per_element) + made
            case _:
                return made

    def _int8(self, inputs: int, outputs: int) -> int:
        """The input in float16 and in 8 bits, its absolute values and which are outliers; then the input in
        8 bits with a scale a row, the 32-bit product, and the result, by way of float16. No column is an
        outlier, as in simulation."""
        read, made = self.rows * inputs, self.rows * outputs
        cast = self.trial.precision.compute_dtype != "float16"
        rounding = self.taken(read) + 2 * self.taken(2 * read) + self.taken(read)
        scaling = self.taken(read) + self.taken(4 * made) + self.taken(2 * made)
        if cast:
            scaling += self.wide(outputs)
        else:
            rounding -= self.taken(2 * read)
        return self.taken(self.rows * _FLOAT) + max(rounding, scaling)

    def _int8_in_python(self, inputs: int, outputs: int) -> int:
        """There bitsandbytes rounds and scales by operations of their own in float32: two tensors beside
        the 16-bit input, and three beside the product; where the CPU lacks the instructions input and
        weight are multiplied in float32."""
        from bench.machine.cpu_kernels import int8_is_widened  # imports torch, which no other formula needs

        held = self.rows * max((2 * _FLOAT + 2) * inputs, inputs + 4 * _FLOAT * outputs)
        if int8_is_widened():
            widened = _FLOAT * (self.rows * inputs + inputs * outputs + self.rows * outputs)
            held = max(held, self.rows * inputs + widened)
        return self.rows * _FLOAT + held


def closed_form(trial: Trial, platform: Platform) -> Columns:
    """The row's columns: the highest moment of the prompt's forward or of the last token's.

    Args:
        trial: what to estimate, of prefill or decode.
        platform: what it would run on: CPU or CUDA.
    """
    shape = shape_of(trial.model)
    static = trial.kv_cache.name == "static"
    cached = trial.cached_tokens if static else trial.seq_len
    first = _Forward(trial, shape, platform, trial.seq_len, cached)
    phases = {"prefill": _highest(first)}
    if trial.workload.name == "decode":
        phases["decode"] = _highest(_Forward(trial, shape, platform, 1, trial.cached_tokens))
    phase = max(phases, key=lambda name: sum(phases[name]))
    cache, temporary = phases[phase]
    held = {
        "parameter": weight_bytes(trial, shape, platform) + _tables(trial, shape, platform),
        "kv_cache": cache,
        "temporary": temporary,
        "input": 8 * trial.micro_batch_size * trial.seq_len,
    }
    return estimate_columns(held, phase, shape.parameters, 0)


def _highest(forward: _Forward) -> Moment:
    return max(_moments(forward), key=sum)


def _tables(trial: Trial, shape: Shape, platform: Platform) -> int:
    """What each nf4 matrix keeps beside its scales: the 16 values of its code and, where its scales are
    quantised themselves, the 256 of theirs and their mean; each a tensor of its own."""
    if trial.precision.quantization != "nf4":
        return 0
    tables = (16, 256, 1) if trial.precision.double_quant else (16,)
    matrices = shape.layers * sum(len(linears) for linears, _ in shape.blocks)
    return matrices * sum(platform.allocated_bytes(count * _FLOAT) for count in tables)


def _moments(forward: _Forward) -> Iterator[Moment]:
    """The last block and the head, moment by moment.

    The model's own code holds the embeddings (learned positions apart), the block's input and the rotary
    table for as long as blocks run. A norm widens its input to float32: with its square, or its normalised
    form, twice as much.
    """
    trial, model = forward.trial, forward.trial.model
    h, rows = model.hidden_size, forward.rows
    cache = cache_bytes(trial, forward.cached, forward.platform)
    held = forward.wide(h) * (2 if model.layers > 1 else 1)
    if model.family == "llama":
        held += 2 * forward.tokens * model.head_dim * forward.bytes_per_element
    else:
        held += forward.wide(h) // (1 if model.family == "opt" else trial.micro_batch_size)
    norm = 2 * rows * h * _FLOAT if model.family == "llama" else forward.wide(h)
    yield from _attention(forward, held, cache)
    yield cache, held + forward.wide(h) + norm
    mlp = held + (3 if model.family == "gpt2" else 2) * forward.wide(
        h
    )  # GPT-2 still holds attention's output
    yield from ((cache, mlp + inner) for inner in _feed_forward(forward))
    yield cache, held + norm
    yield cache, forward.wide(h) + _head(forward)


def _attention(forward: _Forward, held: int, cache: int) -> Iterator[Moment]:
    """Projections, rotation, the cache's growth, attention and its output.

    The prompt's forward gives this layer its cache, whole where it is static. A dynamic one is copied to a
    token more: when the values are, the new keys and values are there, and the old values still.
    """
    trial, model = forward.trial, forward.trial.model
    h, width, narrow = model.hidden_size, model.heads * model.head_dim, model.kv_heads * model.head_dim
    q, kv = forward.wide(width), forward.wide(narrow)
    layer = cache // model.layers
    dynamic = trial.kv_cache.name == "dynamic"
    prompt = forward.tokens == trial.seq_len
    grown = layer if prompt else 2 * kv * dynamic
    base = held + forward.wide(h)  # the normed input
    if model.family == "gpt2":  # one matrix makes all three
        yield cache - grown, base + forward.linear(h, 3 * width)
    else:
        yield cache - grown, base + forward.linear(h, width)
        yield cache - grown, base + q + kv + forward.linear(h, narrow)
    if model.family == "llama":  # q and k times cosine, their halves swapped, those times sine
        yield cache - grown, base + q + 2 * kv + max(3 * q, q + 3 * kv)
    replaced = 0 if prompt or not dynamic else layer // 2 - kv
    yield cache + replaced, base + q + 2 * kv
    read = base + q + forward.wide(width)
    yield cache, read + _FLOAT * model.heads * forward.rows
    yield cache, read + forward.linear(width, h)


def _feed_forward(forward: _Forward) -> Iterator[int]:
    """What it holds at each operation beside its normed input.

    llama: gate, its SiLU, up, their product, down. OPT: the first matrix, ReLU, by when its input is gone,
    the second. GPT-2's GELU is written out: half of its input, a cube, and the cube's multiple beside it.
    """
    model = forward.trial.model
    h, i = model.hidden_size, model.intermediate_size
    wide = forward.wide(i)
    yield forward.linear(h, i)
    yield wide + forward.linear(i, h)
    match model.family:
        case "llama":
            yield wide + forward.linear(h, i)
            yield 3 * wide
        case "opt":
            yield 2 * wide - forward.wide(h)
        case _:
            yield 4 * wide


def _head(forward: _Forward) -> int:
    """Logits of the last position alone. Of a prompt of several sequences these positions do not lie side
    by side: a batched product, for which oneDNN copies the head for each sequence on a CPU in 16 bits
    that has the instructions (memory/hidden_allocations.py)."""
    trial, model = forward.trial, forward.trial.model
    sequences = trial.micro_batch_size
    logits = sequences * model.vocab_size * BYTES[trial.precision.param_dtype]
    apart = forward.platform.bmm_copies_operands and sequences > 1 and forward.tokens > 1
    if not apart:
        return logits
    from bench.machine.cpu_kernels import onednn_multiplies  # imports torch, which no other formula needs

    if not onednn_multiplies(trial.precision.compute_dtype):
        return logits
    return logits + sequences * model.hidden_size * model.vocab_size * forward.bytes_per_element
