"""Plans for a GPU: which combinations of techniques fit, and the largest micro-batch of each.

In: what the command line chose, a card, and a function that simulates. Out: answers, the best first, and
advice if nothing fits. Everything is simulated; nothing is fitted to measurements. A combination fits if
its tensors, what the hardware adds (`gpu_catalogue.Gpu.hardware_bytes`) and the margin are within the
card's memory. The margin is for what is not predicted, mainly fragmentation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.analysis.plans.largest_micro_batch import Predict, Search, initial_guess, search_largest
from bench.machine.gpu_catalogue import Gpu, catalogue
from bench.trial.columns import NotSimulated
from bench.trial.platform import CUDA
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial

Words = tuple[str, ...]

_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# Sensible pairs of precision and LoRA, for axes that the command line leaves open.
_WEIGHTS = (
    ("precision=fp32", "lora=off"),
    ("precision=bf16", "lora=off"),
    ("precision=bf16_pure", "lora=off"),
    ("precision=bf16_pure", "lora=on"),
    ("precision=bf16_autocast", "lora=on"),
    ("precision=int8", "lora=on"),
    ("precision=nf4", "lora=on"),
)
_INFERENCE_PRECISIONS = ("fp32", "bf16_pure", "int8", "nf4")


def inference_combinations(given: Iterable[str], gpu: Gpu) -> Iterator[Words]:
    """The combinations of precision and cache to plan for inference.

    Args:
        given: the axes that the command line has already chosen; they are left out.
        gpu: the card; one without bfloat16 is offered float16.
    """
    chosen = set(given)
    half = _half_precision(gpu)
    axes = {
        "precision": [name.replace("bf16", half) for name in _INFERENCE_PRECISIONS],
        "kv_cache": ["dynamic", "static"],
    }
    yield from itertools.product(
        *([f"{axis}={name}" for name in names] for axis, names in axes.items() if axis not in chosen)
    )


def combinations(given: Iterable[str], ranks: int, gpu: Gpu) -> Iterator[Words]:
    """The combinations of techniques to plan for training.

    Args:
        given: the axes that the command line has already chosen; they are left out.
        ranks: GPUs that train together.
        gpu: the card; one without bfloat16 is offered float16.
    """
    chosen = set(given)
    half = _half_precision(gpu)
    weights = [
        tuple(word.replace("bf16", half) for word in pair if word.partition("=")[0] not in chosen)
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
    for technique in (
        ("optimizer=adamw_8bit",),
        ("offload=params", "fsdp=full_shard", f"fsdp.world_size={ranks}"),
    ):
        if ranks == 1 or technique[0].startswith("offload"):
            yield (f"precision={half}_pure", "lora=off", "checkpointing=on", *technique)


def _half_precision(gpu: Gpu) -> str:
    """How the names of the precisions with 16-bit floats begin that the card multiplies fast."""
    return "bf16" if gpu.peak_flops_per_sec["bfloat16"] else "fp16"


def reasons(trials: dict[Words, Trial]) -> list[str]:
    """Why some of these trials cannot exist on CUDA, each reason once."""
    skipped = (skip_reason(trial, CUDA, 0) for trial in trials.values())
    return list(dict.fromkeys(filter(None, skipped)))


@dataclass(frozen=True)
class Answer:
    """One combination on one card.

    Attributes:
        words: the key=value arguments that chose it.
        trial: its trial, with the micro-batch that was asked about.
        columns: the trial's simulated columns.
        hardware: the bytes that the hardware adds, by what takes them.
        room: the bytes that tensors may take.
        largest: the largest micro-batch that fits, in sequences; 0 if none does.
        bound: the most tokens per second and device that the roofline allows at that micro-batch.
        measured: the tokens per second and device of measured rows, if there are any.
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
        """Bytes in tensors at the peak of one rank, at the micro-batch that was asked about."""
        return int(self.columns["peak_allocated_bytes"])

    @property
    def fits(self) -> bool:
        """Whether the micro-batch that was asked about fits."""
        return self.peak <= self.room

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """The sort key, best first: those that fit, by throughput (measured, else bound); then by peak."""
        rate = self.measured or self.bound or 0.0
        offloads = self.trial.offload.name != "off"  # the bound does not count traffic with the host
        return (not self.fits, offloads, -rate if self.fits else 0.0, self.peak)


@dataclass(frozen=True)
class Failure:
    """A combination that could not be simulated, and why."""

    words: Words
    reason: str


def room(gpu: Gpu, trial: Trial, margin: float) -> int:
    """Bytes that the trial's tensors may take on the card."""
    return int(gpu.memory_bytes * (1 - margin)) - sum(gpu.hardware_bytes(trial).values())


def answers(
    trials: dict[Words, Trial], gpu: Gpu, margin: float, predict: Predict, bound: Callable[..., float]
) -> tuple[list[Answer], list[Failure]]:
    """Simulates every trial and finds its largest micro-batch.

    Returns:
        The answers, the best first, and the combinations that could not be simulated.

    Args:
        trials: by the key=value arguments that chose them; those that cannot exist on CUDA are left out.
        gpu: the card; each rank has one.
        margin: the share of its memory to leave free.
        predict: simulates many trials at once and returns the results in the same order.
        bound: returns the least seconds of a step from its work and the card.
    """
    possible = {words: trial for words, trial in trials.items() if skip_reason(trial, CUDA, 0) is None}
    searches: dict[Words, Search] = {}
    failures = []
    for words, simulation in zip(possible, predict(list(possible.values())), strict=True):
        if isinstance(simulation, NotSimulated):
            failures.append(Failure(words, simulation.reason))
            continue
        trial = possible[words]
        free_bytes = room(gpu, trial, margin)
        simulated = {trial.micro_batch_size: simulation}
        searches[words] = Search(trial, free_bytes, simulated, initial_guess(trial, free_bytes))
    search_largest(list(searches.values()), predict)
    ranked = [_answer(words, search, gpu, bound) for words, search in searches.items()]
    return sorted(ranked, key=lambda answer: answer.rank), failures


def _answer(words: Words, search: Search, gpu: Gpu, bound: Callable[..., float]) -> Answer:
    """The answer of an ended search."""
    trial, largest, rate = search.trial, search.largest, None
    if largest:
        seconds = bound(search.simulated[largest].work, gpu)
        rate = search.sized(largest).tokens_per_step / seconds
    columns = search.simulated[trial.micro_batch_size].columns
    return Answer(words, trial, columns, gpu.hardware_bytes(trial), search.free_bytes, largest, rate)


def _with_batch(trial: Trial, micro_batch_size: int) -> Trial:
    return replace(trial, micro_batch_size=micro_batch_size)


@dataclass(frozen=True)
class Advice:
    """What would make the combination `closest` fit, one change at a time; None if no value tried would."""

    closest: Answer
    micro_batch_size: int | None
    ranks: int | None
    seq_len: int | None
    card: str | None = None


def advice(unfit: list[Answer], gpu: Gpu, margin: float, predict: Predict) -> Advice:
    """Tries smaller micro-batches, more ranks, shorter sequences and other cards.

    Args:
        unfit: answers of which none fits.
        gpu: the card.
        margin: the share of its memory to leave free.
        predict: simulates trials and returns the results in the same order.
    """
    closest = min(unfit, key=lambda answer: answer.peak)
    sharded = [
        answer
        for answer in unfit
        if skip_reason(_sharded(answer.trial, 2), CUDA, 0) is None and answer.trial.offload.name == "off"
    ]
    ranks = None
    if sharded:
        trial = min(sharded, key=lambda answer: answer.peak).trial
        wider = [(n, _sharded(trial, n)) for n in _RANKS if n > trial.world_size]
        ranks = _first_that_fits(wider, gpu, margin, predict)
    lengths = [closest.trial.seq_len // divisor for divisor in (2, 4, 8, 16)]
    shorter = [(n, replace(closest.trial, seq_len=n)) for n in lengths if n > 1]
    size = closest.trial.micro_batch_size
    smaller = [(n, _with_batch(closest.trial, n)) for n in (size // 2, size // 8, 1) if 0 < n < size]
    return Advice(
        closest=closest,
        micro_batch_size=_first_that_fits(smaller, gpu, margin, predict),
        ranks=ranks,
        seq_len=_first_that_fits(shorter, gpu, margin, predict),
        card=_smallest_card(closest, margin),
    )


def _smallest_card(closest: Answer, margin: float) -> str | None:
    """The name of the card of conf/gpu/ with the least memory on which it fits; None if there is none."""
    cards = sorted(catalogue().values(), key=lambda card: card.memory_bytes)
    return next((card.name for card in cards if closest.peak <= room(card, closest.trial, margin)), None)


def _first_that_fits(
    options: list[tuple[int, Trial]], gpu: Gpu, margin: float, predict: Predict
) -> int | None:
    """The first option whose trial fits; each needs less memory than the one before it.

    The last is tried first: where it does not fit, none does.
    """

    def fits(trial: Trial) -> bool:
        (simulation,) = predict([trial])
        return not isinstance(simulation, NotSimulated) and simulation.peak_bytes <= room(
            gpu, trial, margin
        )

    if not options or not fits(options[-1][1]):
        return None
    return next(value for value, trial in options if fits(trial))


def _sharded(trial: Trial, ranks: int) -> Trial:
    return replace(trial, fsdp=replace(trial.fsdp, name="full_shard", world_size=ranks))
