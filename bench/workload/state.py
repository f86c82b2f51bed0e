"""`Run`: all that a trial holds in memory while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import nn

from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.architectures import DTYPES, blocks_of

REPEATED = 3  # the number of the micro-step that stands for all between it and the last


class NotInForceError(RuntimeError):
    """A technique that the trial asked for was not in force, so its numbers would be wrong."""


class _Offload(Protocol):
    offloaded_bytes: int

    def context(self) -> AbstractContextManager[Any]: ...


def _no_sync_needed(_model: nn.Module, _last: bool) -> AbstractContextManager[Any]:
    return nullcontext()


def _no_cache(*_: Any) -> Any:
    raise AssertionError("only inference has a key-value cache")


def ignored(_tensor: torch.Tensor) -> None:
    """What `Run.sent_to_host` does if no tracker watches."""


@dataclass
class Run:
    """A trial under construction, then in training or inference.

    `platform` is the one whose memory is asked about: where the trial runs or, if it is simulated, where it
    would run. `batches` holds one batch for each micro-step, every value [micro_batch_size, seq_len].
    """

    trial: Trial
    device: torch.device
    platform: Platform
    model: nn.Module
    optimizer: torch.optim.Optimizer = field(init=False)  # not set in inference
    scaler: torch.amp.GradScaler = field(init=False)
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    activation_offload: _Offload | None = None
    gradient_sync: Callable[[nn.Module, bool], AbstractContextManager[Any]] = _no_sync_needed
    new_cache: Callable[[], Any] = _no_cache
    pass_over: Callable[[Any, int], None] = _no_cache
    trainer: Any = None  # whose loop runs the steps (trainer.py); None: train_step.py
    chunked_loss: Any = None  # the loss function (techniques/loss.py), where the loss is chunked
    gradient_norm: torch.Tensor | None = None  # of the last step, before it was clipped
    kept_logits_bytes: int = 0  # of the last micro-step whose outputs were kept
    cache: Any = None  # of the generation under way
    host_weights: list[torch.Tensor] = field(default_factory=list)  # hooks copy them to the device
    disk: TemporaryDirectory[str] | None = None  # where offloaded weights lie; deleted with the run
    sent_to_host: Callable[[torch.Tensor], None] = ignored

    @property
    def is_fake(self) -> bool:
        """Whether tensors are fake, with shapes and no data, and the other ranks do not exist."""
        return self.trial.method == "simulate"

    @property
    def passed_over(self) -> int:
        """Micro-steps that a simulated step passes over, since they hold what the one before them holds.

        In the first gradients are made, in the last they may be reduced; those between are alike. All
        batches exist from the start.
        """
        passes_over = self.is_fake and not self.trial.whole and self.trainer is None
        return max(0, len(self.batches) - REPEATED - 1) if passes_over else 0

    @property
    def micro_batches(self) -> list[dict[str, torch.Tensor]]:
        """The batches that a training step goes through, one for each micro-step."""
        if not self.passed_over:
            return self.batches
        return [*self.batches[:REPEATED], self.batches[-1]]

    @property
    def micro_steps(self) -> int:
        """The micro-steps of a step."""
        return len(self.micro_batches) if self.trainer is None else self.trial.grad_accum_steps

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The transformer blocks themselves, whatever wraps them."""
        yield from blocks_of(self.model).items()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks as the model calls them: the checkpointing wrapper where there is one."""
        return [
            self.model.get_submodule(name.removesuffix("._checkpoint_wrapped_module"))
            for name, _ in self.named_blocks()
        ]

    @property
    def model_config(self) -> Any:
        """The transformers configuration, whatever wraps the model."""
        return next(m.config for m in self.model.modules() if hasattr(m, "config"))

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward's autocast, in force only where the precision asks for it."""
        precision = self.trial.precision
        return torch.autocast(
            self.device.type, dtype=DTYPES[precision.compute_dtype], enabled=precision.runs_autocast
        )

    def saved_tensors(self) -> AbstractContextManager[Any]:
        """What happens to tensors that the forward saves: offloaded, or simply kept."""
        return self.activation_offload.context() if self.activation_offload else nullcontext()
