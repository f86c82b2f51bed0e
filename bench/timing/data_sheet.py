"""What operations cost on a card that nobody has calibrated: its data sheet, and how much of it is reached.

In: a card of the catalogue. Out: a `Device`. The shares are the same for every card. None of them is fitted
to a row of results/reference/ but those under `FITTED`.

  products      0.80 of the dense 16-bit peak: the largest that anybody reached over all shapes is 0.80 on
                an H100, 0.86 on an A100, 0.78 on a B200 (ml-engineering, Maximum Achievable Matmul FLOPS).
                What a shape loses to whole tiles and whole waves of tiles comes on top (NVIDIA, "Matrix
                Multiplication Background", dimension quantisation; cuBLAS' tile of 128 x 256).
  float32       0.75 without tensor cores, which need no large tiles: a product of 4096 cubed on an H100
  bandwidth     0.90 of the peak, of a copy
  attention     0.35 of the 16-bit peak: FlashAttention-2 on an H100 (arXiv 2407.08608)
  a kernel      1.3 microseconds from one kernel's end to the next one's start, in a CUDA graph of an H100
  a link        0.85 of a PCIe or NVLink link's rate, for large copies of pinned memory

The shares are the best that anybody saw, so a step takes longer. FITTED to every second configuration of
results/reference/, sorted by trial id; the others grade it, and `bench/grade.py` prints both:

  REACHED        how much longer the device takes than by the best shares
  MODE_SECONDS   both configurations with selective checkpointing are among those fitted
  HOST_BYTES_PER_SEC   of the one configuration whose optimizer runs on the host, an unknown server

What the host needs to issue an operation is a bound from above of what was seen elsewhere (4 microseconds
for a bare operation, and Python and autograd around it); on the reference's host the device was slower
wherever no mode watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.machine.gpu_catalogue import Gpu
from bench.timing.step_time import WAITING, Cost
from bench.trial.columns import Operation
from bench.trial.spec import Trial

PRODUCTS_SHARE, FLOAT32_SHARE, ATTENTION_SHARE = 0.80, 0.75, 0.35
BANDWIDTH_SHARE, LINK_SHARE = 0.90, 0.85
KERNEL_SECONDS = 1.3e-6
_TILE = (128, 256)
ISSUE_SECONDS = {"backward": 8e-6}  # of an operation, autograd's C++
FORWARD_ISSUE_SECONDS = 10e-6  # of an operation that Python calls
# FITTED
REACHED = 1.12
MODE_SECONDS = 32e-6  # more, where a Python mode sees each operation: selective checkpointing
HOST_BYTES_PER_SEC = 80e9
LEAST, MOST = 0.8, 1.35  # of the predicted seconds: between them lie all configurations of the reference
FITTED_TRIALS = frozenset(
    {
        "8e7563035612d6fe", "109799678c76e1bd", "0f205882805e7cb9", "6e2671849e709018", "eca5b9952f07f4cc",
        "9a795ee24f08e8ce", "e7e73fcc152f1fd7", "732235922035b52c", "26bc4b37f8f4ce94", "84480c63ffb200cd",
        "d2d406270edd9a7a",
    }
)  # fmt: skip

# LLM.int8() looks for outliers in each product's input (int8_vectorwise_quant in
# bitsandbytes/backends/cuda/ops.py, and its caller): absolute values, a mask, whether any is true, in which
# columns, where; their values are zeroed in the int8 input, gathered from input and weight, multiplied in
# 16 bits, and added to the output. Simulation knows no data and sees none of it; trained models have
# outliers in nearly every layer.
_QUANTISE, _OUTPUT = "bitsandbytes::int8_vectorwise_quant", "bitsandbytes::int8_mm_dequant"
_PASSES = {_QUANTISE: 4, _OUTPUT: 2}  # how often what they move is read or written
_HIDDEN_OPERATIONS = {_QUANTISE: 9, _OUTPUT: 5}  # operations that the host issues inside
# Users saw LoRA over int8 two to three times slower than over 16 bits (bitsandbytes issue 465, RTX A5000),
# where a data sheet says that int8 is the faster: as long as no card is calibrated, it may be that slow.
_INT8_MOST = 4.0


@dataclass(frozen=True)
class DataSheet:
    """A card by its data sheet."""

    gpu: Gpu
    host_is_device: bool = False

    @property
    def name(self) -> str:
        """The card's name in the catalogue."""
        return self.gpu.name

    def cost(self, operation: Operation) -> Cost:
        """Arithmetic or traffic, whichever takes longer, and the gap to the next kernel."""
        passes = _PASSES.get(operation.name, 1)
        if operation.name.startswith("c10d::"):
            return Cost(operation.moved_bytes / (self.gpu.card_link_bytes_per_sec * LINK_SHARE))
        traffic = passes * operation.moved_bytes / (self.gpu.bandwidth_bytes_per_sec * BANDWIDTH_SHARE)
        gap = 0.0 if operation.name.endswith("[]") else passes * KERNEL_SECONDS
        return Cost(REACHED * max(traffic, self._arithmetic_seconds(operation)) + gap)

    def _arithmetic_seconds(self, operation: Operation) -> float:
        if not operation.flops:
            return 0.0
        peak = self.gpu.peak_flops_per_sec.get(operation.dtype)
        on_tensor_cores = bool(peak) and operation.dtype != "float32"
        if not peak:
            peak = self.gpu.peak_flops_per_sec["float32"]
        assert peak is not None
        if not on_tensor_cores:
            return operation.flops / (peak * FLOAT32_SHARE)
        if "attention" in operation.name:
            return operation.flops / (peak * ATTENTION_SHARE)
        return operation.flops / (peak * PRODUCTS_SHARE * self._wave_share(operation))

    def _wave_share(self, operation: Operation) -> float:
        """The share of the tiles' arithmetic in whole waves that is the product's own; 1 below one wave,
        where cuBLAS splits the sums among the multiprocessors, or takes smaller tiles."""
        if not operation.shape:
            return 1.0
        batches, rows, columns, _ = operation.shape
        shares = []
        for height, width in (_TILE, _TILE[::-1]):
            tiles = batches * math.ceil(rows / height) * math.ceil(columns / width)
            waves = math.ceil(tiles / self.gpu.multiprocessors)
            if tiles < self.gpu.multiprocessors:
                return 1.0
            covered = waves * self.gpu.multiprocessors * height * width
            shares.append(batches * rows * columns / covered)
        return max(shares)

    def issue_seconds(self, operation: Operation, trial: Trial) -> float:
        """What the host needs for an operation, or for a module's call."""
        if operation.name == "module":
            return 0.0
        operations = 1 + _HIDDEN_OPERATIONS.get(operation.name, 0)
        seconds = ISSUE_SECONDS.get(operation.phase, FORWARD_ISSUE_SECONDS)
        if trial.checkpointing.name == "selective" and operation.phase in ("forward", "recomputation"):
            seconds += MODE_SECONDS
        return operations * seconds

    def bounds(self, trial: Trial) -> tuple[float, float]:
        """What the reference's configurations took; LLM.int8() is not among them."""
        return LEAST, (_INT8_MOST if trial.precision.quantization == "int8" else MOST)

    def fresh_memory_seconds(self, size: float) -> float:
        """Nothing: torch's caching allocator keeps what was freed."""
        return 0.0

    def waits(self, operation: Operation) -> bool:
        """Whether the host reads a result of the operation."""
        return operation.name in WAITING

    def transfer_seconds(self, size: float) -> float:
        """Over PCIe, from and to pinned memory."""
        return size / (self.gpu.host_link_bytes_per_sec * LINK_SHARE)

    def host_optimizer_seconds(self, size: float) -> float:
        """As fast as the host's memory."""
        return size / HOST_BYTES_PER_SEC
