"""Plans for a GPU: which combinations of techniques fit, and the largest micro-batch of each.

In: what the command line chose, a card, and a function that simulates. Out: answers, the best first, and
advice if nothing fits. Everything is simulated; nothing is fitted to measurements. A combination fits if
its tensors, what the hardware adds (`gpu_catalogue.Gpu.hardware_bytes`) and the margin are within the
card's memory. The margin is for what is not predicted, mainly fragmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.analysis.plans.combinations import Words
from bench.analysis.plans.largest_micro_batch import (
    Predict,
    Search,
    initial_guess,
    search_largest,
    with_micro_batch,
)
from bench.machine.gpu_catalogue import Gpu, catalogue
from bench.timing.step_time import Device, StepTime, step_time
from bench.trial.columns import NotSimulated
from bench.trial.platform import CUDA
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial

_TOKENS = 128  # a step in the search for the longest sequence
_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)


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
        time: the predicted step at that micro-batch; None if nothing fits.
        fastest: the micro-batch with the highest predicted rate among those that were simulated and fit.
        fastest_peak: bytes in tensors at the peak of one rank, at `fastest`.
        rate: the tokens per second and device predicted at `fastest`; None if nothing fits.
        measured: the tokens per second and device of measured rows, if there are any.
    """

    words: Words
    trial: Trial
    columns: Mapping[str, Any]
    hardware: dict[str, int]
    room: int
    largest: int
    time: StepTime | None = None
    fastest: int = 0
    fastest_peak: int = 0
    rate: float | None = None
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
    def rank(self) -> tuple[bool, float, int]:
        """The sort key, best first: those that fit, by rate; then by peak.

        A measured rate, or else the low end of the predicted one: a pick must not rest on a prediction that
        may be far too high.
        """
        rate = self.measured or self.certain_rate or 0.0
        return (not self.fits, -rate if self.fits else 0.0, self.peak)

    @property
    def certain_rate(self) -> float | None:
        """The low end of the predicted rate's interval: what is certain, as far as anything is."""
        return self.interval and self.interval[0]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the predicted rate; None if nothing fits."""
        if self.rate is None or self.time is None:
            return None
        work = self.rate * self.time.seconds
        return work / self.time.most_seconds, work / self.time.least_seconds


@dataclass(frozen=True)
class Failure:
    """A combination that could not be simulated, and why."""

    words: Words
    reason: str


def room(gpu: Gpu, trial: Trial, margin: float) -> int:
    """Bytes that the trial's tensors may take on the card."""
    return int(gpu.memory_bytes * (1 - margin)) - sum(gpu.hardware_bytes(trial).values())


def answers(
    trials: dict[Words, Trial], gpu: Gpu, margin: float, predict: Predict, device: Device
) -> tuple[list[Answer], list[Failure]]:
    """Simulates every trial and finds its largest micro-batch.

    Returns:
        The answers, the best first, and the combinations that could not be simulated.

    Args:
        trials: by the key=value arguments that chose them; those that cannot exist on CUDA are left out.
        gpu: the card; each rank has one.
        margin: the share of its memory to leave free.
        predict: simulates many trials at once and returns the results in the same order.
        device: what operations cost on the card.
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
    ranked = [_answer(words, search, gpu, device) for words, search in searches.items()]
    return sorted(ranked, key=lambda answer: answer.rank), failures


def _answer(words: Words, search: Search, gpu: Gpu, device: Device) -> Answer:
    """The answer of an ended search."""
    trial, largest = search.trial, search.largest
    times: dict[int, StepTime] = {}
    for size, simulation in search.simulated.items():
        if size <= largest:
            times[size] = step_time(simulation.work, search.sized(size), simulation.columns, device)
    rates = {size: search.sized(size).tokens_per_step / time.seconds for size, time in times.items()}
    fastest = max(rates, key=rates.__getitem__, default=0)
    return Answer(
        words,
        trial,
        search.simulated[trial.micro_batch_size].columns,
        gpu.hardware_bytes(trial),
        search.free_bytes,
        largest,
        times.get(fastest),
        fastest,
        search.simulated[fastest].peak_bytes if fastest else 0,
        rates.get(fastest),
    )


def longest_sequence(answer: Answer, gpu: Gpu, margin: float, predict: Predict) -> int:
    """The longest sequence that fits with one sequence at a time, in whole multiples of `_TOKENS`; 0 if the
    shortest does not, or a longer one than the model takes would."""
    trial = replace(answer.trial, micro_batch_size=1)
    free_bytes = room(gpu, trial, margin)
    start = max(1, trial.seq_len // _TOKENS)
    search = Search(trial, free_bytes, resized=_of_tokens)
    (first,) = predict([search.sized(start)])
    if isinstance(first, NotSimulated):
        return 0
    search.simulated[start] = first
    search_largest([search], predict)
    return search.largest * _TOKENS


def _of_tokens(trial: Trial, size: int) -> Trial:
    return replace(trial, seq_len=size * _TOKENS)


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
    smaller = [(n, with_micro_batch(closest.trial, n)) for n in (size // 2, size // 8, 1) if 0 < n < size]
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
