"""What fits a GPU and what to pick: combinations, their predicted peaks, the largest micro-batch of each.

Everything is simulated; nothing is fitted. A combination fits if tensors, what the hardware adds
(`gpus.Gpu.hardware_bytes`) and the margin are within the card's memory. The margin is for what is not
predicted: fragmentation above all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.analysis.largest_micro_batch import Predict, Search, initial_guess, search_largest
from bench.machine.gpu_catalogue import Gpu, catalogue
from bench.trial.platform import CUDA
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial

Words = tuple[str, ...]

_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# What people choose among, where the command line does not: weights and adapters in pairs that make sense.
_WEIGHTS = (
    ("precision=fp32", "lora=off"),
    ("precision=bf16", "lora=off"),
    ("precision=bf16_pure", "lora=off"),
    ("precision=bf16_pure", "lora=on"),
    ("precision=int8", "lora=on"),
    ("precision=nf4", "lora=on"),
)


_INFERRED = ("fp32", "bf16_pure", "int8", "nf4")


def inference_combinations(given: Iterable[str], gpu: Gpu) -> Iterator[Words]:
    """Precisions and caches, where nothing trains; an axis that is `given` is left alone."""
    chosen = set(given)
    narrow = _narrow(gpu)
    axes = {
        "precision": [name.replace("bf16", narrow) for name in _INFERRED],
        "kv_cache": ["dynamic", "static"],
    }
    yield from itertools.product(
        *([f"{axis}={name}" for name in names] for axis, names in axes.items() if axis not in chosen)
    )


def combinations(given: Iterable[str], ranks: int, gpu: Gpu) -> Iterator[Words]:
    """The sensible combinations of techniques of training; an axis that is `given` is left alone.

    Args:
        given: the axes that the command line has already chosen.
        ranks: GPUs that train together.
        gpu: the card; one without bfloat16 is offered float16.
    """
    chosen = set(given)
    narrow = _narrow(gpu)
    weights = [
        tuple(word.replace("bf16", narrow) for word in pair if word.partition("=")[0] not in chosen)
        for pair in _WEIGHTS
    ]
    options = [list(dict.fromkeys(weights))]
    if "checkpointing" not in chosen:
        options.append([("checkpointing=off",), ("checkpointing=on",)])
    if "fsdp" not in chosen and ranks > 1:
        options.append(
            [(f"fsdp={name}", f"fsdp.world_size={ranks}") for name in ("full_shard", "no_shard")]
        )
    for parts in itertools.product(*options):
        yield tuple(itertools.chain(*parts))
    if {"fsdp", "offload", "optimizer", "precision", "lora", "checkpointing"} & chosen:
        return
    for more in (
        ("optimizer=adamw_8bit",),
        ("offload=params", "fsdp=full_shard", f"fsdp.world_size={ranks}"),
    ):
        if ranks == 1 or more[0].startswith("offload"):
            yield (f"precision={narrow}_pure", "lora=off", "checkpointing=on", *more)


def _narrow(gpu: Gpu) -> str:
    """The 16-bit floats that the card multiplies in, as levels of precision begin with them."""
    return "bf16" if gpu.peak_flops_per_sec["bfloat16"] else "fp16"


def reasons(trials: dict[Words, Trial]) -> list[str]:
    """Why trials cannot exist on CUDA, each reason once."""
    found = (skip_reason(trial, CUDA, 0) for trial in trials.values())
    return list(dict.fromkeys(filter(None, found)))


@dataclass(frozen=True)
class Answer:
    """One combination on one card; bytes, and sequences for the micro-batches.

    `largest` is the largest micro-batch that fits, 0 if none does; `bound` the tokens per second and device
    that the roofline allows at that micro-batch, at best; `measured` those of a row of results, if any.
    """

    words: Words
    trial: Trial
    columns: Mapping[str, Any]
    hardware: dict[str, int]
    room: int
    largest: int
    bound: float | None
    measured: float | None = None

    @property
    def peak(self) -> int:
        """Tensors at the peak, of one rank, at the micro-batch asked about."""
        return int(self.columns["peak_allocated_bytes"])

    @property
    def fits(self) -> bool:
        """Whether the micro-batch asked about fits."""
        return self.peak <= self.room

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """Sorts answers: those that fit by throughput, measured before bounds; then by what is missing."""
        rate = self.measured or self.bound or 0.0
        slow = self.trial.offload.name != "off"  # traffic with the host is not in the bound
        return (not self.fits, slow, -rate if self.fits else 0.0, self.peak)


def room(gpu: Gpu, trial: Trial, margin: float) -> int:
    """Bytes that the trial's tensors may take on the card."""
    return int(gpu.memory_bytes * (1 - margin)) - sum(gpu.hardware_bytes(trial).values())


def answers(
    trials: dict[Words, Trial], gpu: Gpu, margin: float, predict: Predict, bound: Callable[..., float]
) -> list[Answer]:
    """Predicts every trial, finds its largest micro-batch, and ranks them.

    Args:
        trials: by the words that chose them; those that cannot exist on CUDA are left out.
        gpu: the card, of which each rank has one.
        margin: share of its memory to leave free.
        predict: simulates trials, many at once; results in the same order.
        bound: least seconds of a step, from its work and the card.
    """
    able = {words: trial for words, trial in trials.items() if skip_reason(trial, CUDA, 0) is None}
    asked = predict(list(able.values()))
    spaces = [room(gpu, trial, margin) for trial in able.values()]
    searches = [
        Search(trial, space, {trial.micro_batch_size: simulation}, initial_guess(trial, space))
        for trial, space, simulation in zip(able.values(), spaces, asked, strict=True)
    ]
    search_largest(searches, predict)
    found = []
    for (words, trial), simulation, one in zip(able.items(), asked, searches, strict=True):
        largest = one.largest
        rate = one.sized(largest).tokens_per_step / bound(one.seen[largest].work, gpu) if largest else None
        hardware = gpu.hardware_bytes(trial)
        found.append(Answer(words, trial, simulation.columns, hardware, one.space, largest, rate))
    return sorted(found, key=lambda answer: answer.rank)


def _with_batch(trial: Trial, micro_batch_size: int) -> Trial:
    return replace(trial, micro_batch_size=micro_batch_size)


@dataclass(frozen=True)
class Advice:
    """What would make a model fit that does not; None where nothing tried would."""

    closest: Answer
    micro_batch_size: int | None
    ranks: int | None
    seq_len: int | None
    card: str | None = None


def advice(found: list[Answer], gpu: Gpu, margin: float, predict: Predict) -> Advice:
    """Looks for smaller micro-batches, more ranks, shorter sequences, other cards for what comes closest.

    Args:
        found: answers of which none fits.
        gpu: the card.
        margin: share of its memory to leave free.
        predict: simulates trials.
    """
    closest = min(found, key=lambda answer: answer.peak)
    sharded = [
        answer
        for answer in found
        if skip_reason(_sharded(answer.trial, 2), CUDA, 0) is None and answer.trial.offload.name == "off"
    ]
    ranks = None
    if sharded:
        trial = min(sharded, key=lambda answer: answer.peak).trial
        more = [(n, _sharded(trial, n)) for n in _RANKS if n > trial.world_size]
        ranks = _first(more, gpu, margin, predict)
    lengths = [closest.trial.seq_len // divisor for divisor in (2, 4, 8, 16)]
    shorter = [(n, replace(closest.trial, seq_len=n)) for n in lengths if n > 1]
    size = closest.trial.micro_batch_size
    smaller = [(n, _with_batch(closest.trial, n)) for n in (size // 2, size // 8, 1) if 0 < n < size]
    fitting = _first(smaller, gpu, margin, predict)
    return Advice(
        closest, fitting, ranks, _first(shorter, gpu, margin, predict), _smallest_card(closest, margin)
    )


def _smallest_card(closest: Answer, margin: float) -> str | None:
    """The card of conf/gpu/ with the least memory that would do."""
    cards = sorted(catalogue().values(), key=lambda card: card.memory_bytes)
    return next((card.name for card in cards if closest.peak <= room(card, closest.trial, margin)), None)


def _first(options: list[tuple[int, Trial]], gpu: Gpu, margin: float, predict: Predict) -> int | None:
    """The first option whose trial fits, tried one after the other."""
    for value, trial in options:
        (simulation,) = predict([trial])
        if simulation.peak_bytes <= room(gpu, trial, margin):
            return value
    return None


def _sharded(trial: Trial, ranks: int) -> Trial:
    return replace(trial, fsdp=replace(trial.fsdp, name="full_shard", world_size=ranks))
