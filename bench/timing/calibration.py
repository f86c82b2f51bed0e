"""What operations cost on a device that was calibrated (`bench/calibrate.py`): its file, and a `Device`.

A calibration is one JSON file: raw samples, and what they were measured with. Between an operation's
samples seconds are interpolated along the bytes that it moves (attention: the FLOPs), on logarithmic axes;
beyond them the rate of the last one holds. Products of matrices are interpolated over rows, columns and the
length of the sums. An operation that was never sampled costs what others of its dtype cost for as many
bytes, and is counted as not calibrated. Must not import torch.

What the host needs to issue operations comes from whole steps of a model that is so small that its
arithmetic takes no time: the seconds of a phase, over its operations. On a CPU that includes what an
operation costs however small it is, so it is subtracted from the samples there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bench.timing.interpolation import Curve, Grid
from bench.timing.samples import HostSample, ProductSample, Sample
from bench.timing.step_time import WAITING, Cost
from bench.trial.columns import Operation
from bench.trial.spec import Trial

FORMAT = 1
# Of the predicted seconds. 40 drawn configurations took 1.0 to 1.8 times the prediction on a CPU of two
# shared cores: samples are the fastest of some rounds, with what they read in the processor's cache.
LEAST, MOST = 0.8, 1.8
_PYTHON_BETWEEN = ("quantization", "lora", "autocast", "mode")  # what puts Python between two operations


class CalibrationError(ValueError):
    """A calibration cannot be read; the message says why, and what to do."""


def style_of(trial: Trial) -> dict[str, str]:
    """What decides how much Python runs between two operations, the most important first."""
    return {
        "fsdp": trial.fsdp.name,
        "quantization": trial.precision.quantization,
        "lora": "on" if trial.lora.enabled else "off",
        "autocast": "on" if trial.precision.runs_autocast else "off",
        "mode": "on" if trial.checkpointing.name == "selective" else "off",
        "optimizer": trial.optimizer.name,
        "family": trial.model.family or "",
    }


@dataclass(frozen=True)
class Calibration:
    """A calibrated device; a `Device` of `step_time.py`.

    Attributes:
        name: what `gpu=` calls it.
        device_name: as in the rows measured on it.
        host_is_device: whether it is a CPU.
        threads: of a CPU, that the samples were measured with.
        fresh_memory_seconds_per_byte: of memory that the system has to give first.
        made_with: versions of torch and the driver, date, drift of a reference product.
    """

    name: str
    device_name: str
    host_is_device: bool
    threads: int
    made_with: dict[str, Any]
    operations: list[Sample]
    products: list[ProductSample]
    host: list[HostSample]
    copies: list[Sample] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    fresh_memory_seconds_per_byte: float = 0.0

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"format": FORMAT, **asdict(self)}
        kept |= {"host": [one._asdict() for one in self.host]}
        lines = [f"  {json.dumps(key)}: {_dumped(value)}" for key, value in kept.items()]
        part = path.with_suffix(".part")
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        part.replace(path)

    def cost(self, operation: Operation) -> Cost:
        """By interpolation between samples; on a CPU beyond what issuing it costs."""
        if operation.shape:
            seconds = self._product_seconds(operation)
            return Cost(seconds) if seconds is not None else self._by_bytes(operation, known=False)
        return self._by_bytes(operation, known=True)

    def _by_bytes(self, operation: Operation, *, known: bool) -> Cost:
        name = operation.name.removesuffix("[]")
        collective = name.startswith("c10d::")  # sampled in one dtype, and its latency is not the host's
        curve = self._curves.get((name, "float32" if collective else operation.dtype)) if known else None
        if curve is not None:
            size = operation.flops if "attention" in name else operation.moved_bytes
            return Cost(curve.seconds(size, floor=collective or not self.host_is_device))
        curve = self._curves_by_dtype.get(operation.dtype) or self._curves_by_dtype.get("float32")
        if curve is None:
            return Cost(0.0, known=False)
        return Cost(curve.seconds(operation.moved_bytes, floor=not self.host_is_device), known=False)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], Curve]:
        grouped: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for one in self.operations:
            size = one.flops if "attention" in one.name else one.moved_bytes
            grouped[one.name, one.dtype].append((size, one.seconds))
        return {key: Curve.through(points) for key, points in grouped.items()}

    @cached_property
    def _curves_by_dtype(self) -> dict[str, Curve]:
        grouped: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for one in self.operations:
            if not one.flops:
                grouped[one.dtype].append((one.moved_bytes, one.seconds))
        return {dtype: Curve.through(points) for dtype, points in grouped.items()}

    @cached_property
    def _grids(self) -> dict[tuple[str, str], Grid]:
        grouped: dict[tuple[str, str], list[ProductSample]] = defaultdict(list)
        for one in self.products:
            grouped[one.dtype, one.layout].append(one)
        return {kind: Grid.of(samples) for kind, samples in grouped.items()}

    def _product_seconds(self, operation: Operation) -> float | None:
        layout = "nn" if operation.layout == "tt" else operation.layout
        grid = self._grids.get((operation.dtype, layout))
        if grid is None:
            return None
        batches, *sizes = operation.shape
        floor = grid.least_seconds if self.host_is_device else 0.0
        return max(0.0, batches * grid.seconds(*sizes) - floor)

    def issue_seconds(self, operation: Operation, trial: Trial) -> float:
        """The host's seconds for an operation in the minute step that is most like the trial."""
        if operation.name == "module":
            return 0.0
        phase = {"done": "optimizer", "": "forward"}.get(operation.phase, operation.phase)
        return self._issue(phase, tuple(style_of(trial).items()))

    def _issue(self, phase: str, style: tuple[tuple[str, str], ...]) -> float:
        key = (phase, style)
        if key not in self._issued:
            phases = [one for one in self.host if one.phase == phase]
            if not phases:
                phases = [one for one in self.host if one.phase == "forward"]
            names = ("fsdp", *(("optimizer",) if phase == "optimizer" else _PYTHON_BETWEEN))
            wanted = dict(style)

            def alike(one: HostSample) -> tuple[bool, ...]:
                return tuple(one.style[name] == wanted[name] for name in (*names, "family"))

            best = max((alike(one) for one in phases), default=())
            each = [one.seconds / one.operations for one in phases if alike(one) == best]
            self._issued[key] = median(each) if each else 0.0
        return self._issued[key]

    @cached_property
    def _issued(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {}

    def bounds(self, trial: Trial) -> tuple[float, float]:
        """What graded trials of a calibrated CPU took."""
        return LEAST, MOST

    def fresh_memory_seconds(self, size: float) -> float:
        """What the system needs to give a CPU so much new memory."""
        return size * self.fresh_memory_seconds_per_byte

    def waits(self, operation: Operation) -> bool:
        """Whether the host reads a result of the operation: LLM.int8() asks for outliers."""
        return operation.name in WAITING

    def transfer_seconds(self, size: float) -> float:
        """At the rate of the largest copy that was sampled, in both directions on average."""
        if not self.copies:
            return 0.0
        largest = max(one.moved_bytes for one in self.copies)
        rates = [one.moved_bytes / one.seconds for one in self.copies if one.moved_bytes == largest]
        return size / (sum(rates) / len(rates))

    def host_optimizer_seconds(self, size: float) -> float:
        """Not calibrated: as fast as a card's data sheet says."""
        from bench.timing.data_sheet import HOST_BYTES_PER_SEC

        return size / HOST_BYTES_PER_SEC


def _dumped(value: Any) -> str:
    """JSON, with one line for each sample."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(one)}" for one in value) + "\n  ]"
    return json.dumps(value)


def read(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        CalibrationError: it is none, or one of another format.
    """
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path}: not a calibration ({error}); make one with bench/calibrate.py"
        ) from error
    if not isinstance(kept, dict) or kept.pop("format", None) != FORMAT:
        raise CalibrationError(
            f"{path}: not a calibration of format {FORMAT}; make one with bench/calibrate.py"
        )
    try:
        kept["operations"] = [Sample(*one) for one in kept["operations"]]
        kept["copies"] = [Sample(*one) for one in kept["copies"]]
        kept["products"] = [ProductSample(*one) for one in kept["products"]]
        kept["host"] = [HostSample(**one) for one in kept["host"]]
        return Calibration(**kept)
    except (TypeError, KeyError) as error:
        raise CalibrationError(
            f"{path}: a sample is torn ({error}); make it again with bench/calibrate.py"
        ) from error
