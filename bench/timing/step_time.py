"""A step's time, from its work and what operations cost on a device.

In: work, the trial, its simulated columns, and a `Device` (`data_sheet.py` of a card, `calibration.py` of a
device that was measured). Out: a `StepTime`. Must not import torch: bench/plan.py starts at once where
earlier simulations answer.

Host and device are two queues. Where they are two machines the host issues operations ahead of the device,
so that a step takes as long as the slower of them. In a phase in which the host reads results again and
again (LLM.int8() looks for outliers before each product) it cannot run ahead, and the phase takes the sum;
so does a whole step on a CPU, where they are one.
Collectives run beside the forward and the backward, as FSDP and DDP arrange it; copies to the host and back
wait in the queue of the operations.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Protocol

from bench.trial.columns import Columns, Operation, Work
from bench.trial.spec import Trial

# LLM.int8() reads whether there are outliers before each product, and waits for the device.
WAITING = frozenset({"bitsandbytes::int8_vectorwise_quant"})
KINDS = ("products", "attention", "elementwise", "optimizer", "transfer", "collective")


@dataclass(frozen=True)
class Cost:
    """Seconds of one operation on a device; `known` if the device's own figures say so."""

    seconds: float
    known: bool = True


class Device(Protocol):
    """What operations cost on one device and its host."""

    @property
    def name(self) -> str:
        """As `gpu=` calls it."""
        ...

    @property
    def host_is_device(self) -> bool:
        """Whether the host executes the operations itself."""
        ...

    def bounds(self, trial: Trial) -> tuple[float, float]:
        """The least and the most that a step may take, as multiples of the prediction."""
        ...

    def cost(self, operation: Operation) -> Cost:
        """What the device needs to execute the operation."""
        ...

    def issue_seconds(self, operation: Operation, trial: Trial) -> float:
        """What the host needs to issue it, Python included."""
        ...

    def fresh_memory_seconds(self, size: float) -> float:
        """What it takes to get so many bytes that a step frees at its end."""
        ...

    def waits(self, operation: Operation) -> bool:
        """Whether the host reads a result of the operation, and so waits for the device."""
        ...

    def transfer_seconds(self, size: float) -> float:
        """What it takes to copy so many bytes to the host or back."""
        ...

    def host_optimizer_seconds(self, size: float) -> float:
        """What an optimizer on the host needs to read and write so many bytes."""
        ...


@dataclass(frozen=True)
class StepTime:
    """A predicted step.

    Attributes:
        seconds: of the whole step.
        by_kind: of the device, by `KINDS`; what overlaps is counted in each.
        host_seconds: of the host to issue everything.
        host_bound_share: the share of the step in which the device waits for the host.
        uncalibrated_share: the share of the device's time of operations that the device's figures do not
            name; they are taken for others with as many bytes.
        least_seconds: as little as the step may take.
        most_seconds: as much as it may take.
        first_token_seconds: from a prompt to its first token, in inference.
    """

    seconds: float
    by_kind: dict[str, float]
    host_seconds: float
    host_bound_share: float
    uncalibrated_share: float
    least_seconds: float
    most_seconds: float
    first_token_seconds: float | None = None

    def columns(self, trial: Trial, tokens_per_step: int) -> Columns:
        """The row's columns; the interval of the rate is the prediction's."""
        rate = tokens_per_step / self.seconds
        low, high = tokens_per_step / self.most_seconds, tokens_per_step / self.least_seconds
        times: Columns = {
            "step_seconds": [self.seconds],
            "step_seconds_median": self.seconds,
            "tokens_per_sec_per_device": rate,
            "tokens_per_sec_global": rate * trial.world_size,
            "tokens_per_sec_per_device_ci_low": low,
            "tokens_per_sec_per_device_ci_high": high,
            "products_seconds": self.by_kind["products"],
            "attention_seconds": self.by_kind["attention"],
            "elementwise_seconds": self.by_kind["elementwise"],
            "optimizer_seconds": self.by_kind["optimizer"],
            "transfer_seconds": self.by_kind["transfer"],
            "collective_seconds": self.by_kind["collective"],
            "host_seconds": self.host_seconds,
            "host_bound_share": self.host_bound_share,
            "uncalibrated_share": self.uncalibrated_share,
        }
        if self.first_token_seconds is not None:
            times["first_token_seconds"] = self.first_token_seconds
        return times


def step_time(work: Work, trial: Trial, columns: Columns, device: Device) -> StepTime:
    """How long a steady step takes on the device.

    Args:
        work: what the step's operations compute and move.
        trial: the trial that was simulated.
        columns: its simulated columns: bytes and evidence.
        device: what operations cost.
    """
    if trial.workload.name != "decode":
        whole = _of(work, trial, columns, device)
        return whole if not trial.workload.inference else _with_first(whole, whole.seconds)
    by_phase = {
        phase: Counter({o: n for o, n in work.items() if o.phase == phase})
        for phase in ("prefill", "decode")
    }
    prompt = _of(by_phase["prefill"], trial, columns, device)
    return _with_first(_of(by_phase["decode"], trial, columns, device), prompt.seconds)


def _with_first(step: StepTime, seconds: float) -> StepTime:
    return replace(step, first_token_seconds=seconds)


def _of(work: Work, trial: Trial, columns: Columns, device: Device) -> StepTime:
    by_kind = dict.fromkeys(KINDS, 0.0)
    host_by_phase: defaultdict[str, float] = defaultdict(float)
    busy_by_phase: defaultdict[str, float] = defaultdict(float)
    unknown = host_optimizer_bytes = 0.0
    updates_on_host = trial.offload.name == "params" and not trial.workload.inference
    for operation, times in work.items():
        if not operation.name.endswith("[]"):  # the operation itself has an entry, too
            host_by_phase[operation.phase] += times * device.issue_seconds(operation, trial)
        if not operation.moved_bytes:
            continue
        kind = _kind(operation)
        if kind == "optimizer" and updates_on_host and not device.host_is_device:
            host_optimizer_bytes += times * operation.moved_bytes
            continue
        cost = device.cost(operation)
        by_kind[kind] += times * cost.seconds
        unknown += 0.0 if cost.known else times * cost.seconds
        if kind != "collective":
            busy_by_phase[operation.phase] += times * cost.seconds
    if trial.fsdp.name == "no_shard" and trial.world_size > 1:
        by_kind["collective"] += device.cost(_reduced_gradients(columns)).seconds
    if not device.host_is_device:
        by_kind["transfer"] += device.transfer_seconds(_transferred_bytes(trial, columns))
    fresh = device.fresh_memory_seconds(_fresh_bytes(columns))
    by_kind["elementwise"] += fresh  # whoever writes it first waits for it
    busy_by_phase["forward"] += fresh
    on_host = device.host_optimizer_seconds(host_optimizer_bytes)
    by_kind["optimizer"] += on_host
    waiting = (
        {o.phase for o in work if device.waits(o)} if not device.host_is_device else set(host_by_phase)
    )
    in_turn = sum(host_by_phase[phase] + busy_by_phase[phase] for phase in waiting)
    host_ahead = sum(seconds for phase, seconds in host_by_phase.items() if phase not in waiting)
    busy_ahead = sum(seconds for phase, seconds in busy_by_phase.items() if phase not in waiting)
    optimizer = busy_by_phase["optimizer"] + busy_by_phase["done"]
    computing = in_turn + busy_ahead - (0.0 if device.host_is_device else optimizer)
    # gloo's threads compute on the same cores; NCCL runs beside the computing, and may be the longer
    exposed = by_kind["collective"] - (
        0.0 if device.host_is_device else min(computing, by_kind["collective"])
    )
    seconds = in_turn + max(host_ahead, busy_ahead + by_kind["transfer"] + exposed) + on_host
    host, total = sum(host_by_phase.values()), sum(by_kind.values())
    busy = total - by_kind["collective"] + exposed
    least, most = device.bounds(trial)
    return StepTime(
        seconds=seconds,
        by_kind=by_kind,
        host_seconds=float(host),
        host_bound_share=max(0.0, 1 - busy / seconds) if seconds else 0.0,
        uncalibrated_share=unknown / total if total else 0.0,
        least_seconds=least * seconds,
        most_seconds=most * seconds,
    )


def _kind(operation: Operation) -> str:
    if operation.name.startswith("c10d::"):
        return "collective"
    if operation.phase in ("optimizer", "done"):
        return "optimizer"
    if "attention" in operation.name:
        return "attention"
    return "products" if operation.flops else "elementwise"


def _reduced_gradients(columns: Columns) -> Operation:
    """DDP's reduction of all gradients: its reducer is C++, which simulation replaces."""
    size = columns.get("gradient_max_bytes") or 0
    return Operation("c10d::allreduce_", "float32", (), 0, 2 * size, "backward")


def _fresh_bytes(columns: Columns) -> int:
    """Bytes that a step allocates and frees: on a CPU malloc returns what is free at the end to the system,
    and the next step gets it page by page again."""
    kept = (columns.get("parameter_bytes") or 0) + (columns.get("optimizer_bytes") or 0)
    return max(0, (columns.get("peak_allocated_bytes") or 0) - kept)


def _transferred_bytes(trial: Trial, columns: Columns) -> float:
    """Bytes that a step copies between device and host.

    Activations go out and come back. FSDP's parameters come for the forward and, unless they stay gathered,
    again for the backward; their gradients go out.
    """
    moved = columns.get("evidence", {}).get("offloaded_bytes", 0)
    if trial.offload.name == "activations":
        return float(2 * moved)
    if trial.offload.name != "params":
        return 0.0
    if trial.workload.inference:
        return float(moved)
    return float(moved * (3 if trial.fsdp.name == "full_shard" else 2))
