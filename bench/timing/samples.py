"""What a calibration measures: seconds of operations, of products, and of the host. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """One operation's seconds."""

    name: str
    dtype: str
    flops: int
    moved_bytes: int
    seconds: float


class ProductSample(NamedTuple):
    """One product's seconds: rows x inner by inner x columns, in the layout of an `Operation`."""

    dtype: str
    rows: int
    columns: int
    inner: int
    layout: str
    seconds: float


class HostSample(NamedTuple):
    """The seconds of one phase of a minute step, and its operations.

    Attributes:
        style: what the step was of: `style_of` its trial.
        phase: `forward`, `recomputation`, `backward`, `optimizer`, `prefill` or `decode`.
        operations: how many the host issued.
        seconds: of all of them.
    """

    style: dict[str, str]
    phase: str
    operations: int
    seconds: float
