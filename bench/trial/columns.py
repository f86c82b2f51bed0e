"""The columns that one rank of a trial fills, by name and type: what travels from a method to the row.

Units stand in names; None is "nobody knows". `results/schema.py` says how they are stored, and
`sweep/row_assembly.py` makes one row of all ranks' columns. Needs nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict


class RankBytes(TypedDict, total=False):
    """Bytes that may differ between ranks: the row holds the largest, `per_rank` keeps them all."""

    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    peak_device_used_bytes: int | None
    context_bytes: int | None
    peak_host_rss_bytes: int | None
    build_peak_allocated_bytes: int | None
    build_peak_reserved_bytes: int | None
    cold_peak_allocated_bytes: int | None
    cold_peak_reserved_bytes: int | None
    tracked_peak_bytes: int | None
    gathered_max_bytes: int | None
    host_max_bytes: int | None
    parameter_bytes: int | None
    gradient_bytes: int | None
    optimizer_bytes: int | None
    activation_bytes: int | None
    kv_cache_bytes: int | None
    temporary_bytes: int | None
    input_bytes: int | None
    parameter_max_bytes: int | None
    gradient_max_bytes: int | None
    optimizer_max_bytes: int | None
    activation_max_bytes: int | None
    kv_cache_max_bytes: int | None
    temporary_max_bytes: int | None
    input_max_bytes: int | None
    forward_tracked_peak_bytes: int | None
    backward_tracked_peak_bytes: int | None
    optimizer_tracked_peak_bytes: int | None
    prefill_tracked_peak_bytes: int | None
    decode_tracked_peak_bytes: int | None
    untracked_bytes: int | None
    oom_requested_bytes: int | None


class Columns(RankBytes, total=False):
    """All that a rank reports; `evidence` holds each technique's own names."""

    attention: str | None
    loop_arguments: str | None
    threads: int
    param_count: int
    trainable_param_count: int
    active_param_count: int
    tokens_per_step: int
    model_flops_per_step: float
    hardware_flops_per_step: float
    peak_phase: str
    step_seconds: list[float]
    step_seconds_median: float
    tokens_per_sec_per_device: float
    tokens_per_sec_per_device_ci_low: float
    tokens_per_sec_per_device_ci_high: float
    tokens_per_sec_global: float
    products_seconds: float
    attention_seconds: float
    elementwise_seconds: float
    optimizer_seconds: float
    transfer_seconds: float
    collective_seconds: float
    host_seconds: float
    host_bound_share: float
    uncalibrated_share: float
    first_token_seconds: float
    block_seconds: float
    cold_step_seconds: float
    build_seconds: float
    simulation_seconds: float
    working_seconds: float
    stop_reason: str
    evidence: dict[str, Any]
    timeline: dict[str, list[Any]]  # memory/timeline.py, `stretches`
    losses: list[float]
    device_throttled: bool | None
    device_shared: bool | None
    clock_mhz_before: int | None
    clock_mhz_after: int | None
    temperature_celsius_before: int | None
    temperature_celsius_after: int | None
    power_watts_before: float | None
    power_watts_after: float | None


class Hardware(TypedDict, total=False):
    """What a trial ran on, or was predicted for."""

    device_name: str
    device_memory_bytes: int | None
    driver_version: str | None


class Operation(NamedTuple):
    """One operation of a step, by all that its time depends on.

    Attributes:
        name: as torch names it: `aten::mm`. One that works on a list of tensors has an entry of its own
            with no bytes, and one for each tensor, whose name ends in `[]`. `module` is a module's call.
        dtype: that of the first tensor of floats or int8.
        shape: of a product: its batches, rows, columns, and the length of the sums; else empty.
        flops: what it computes.
        moved_bytes: what it reads and writes; 0 of a view.
        phase: `forward`, `recomputation`, `backward`, `optimizer`, `prefill` or `decode`.
        layout: of a product: for each matrix `n`, or `t` where its columns lie one after the other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    flops: int
    moved_bytes: int
    phase: str
    layout: str = ""


# How often each operation occurs in a step.
Work = Counter[Operation]


@dataclass(frozen=True)
class Simulation:
    """What a steady step would hold, and what its operations compute and move."""

    columns: Columns
    work: Work = field(default_factory=Counter)

    @property
    def peak_bytes(self) -> int:
        """What the step would hold at its peak, in one rank."""
        peak = self.columns["peak_allocated_bytes"]
        assert peak is not None, "a simulation has a peak"
        return peak


@dataclass(frozen=True)
class NotSimulated:
    """Why there is no simulation of a trial, in one line."""

    reason: str


NOT_IN_A_ROW = frozenset({"working_seconds"})  # of which the row holds what is left of the wall clock's
