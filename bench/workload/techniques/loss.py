"""The loss over a large vocabulary: the head and the cross-entropy of one chunk of tokens at a time.

transformers computes the logits of all tokens, copies them to float32 and takes the cross-entropy: with a
vocabulary of 128,256 that is 2 GiB for each copy and 4,096 tokens. Here the head returns its input, and the
model's loss function runs the head itself, chunk by chunk, each under torch.utils.checkpoint: the forward
keeps the hidden states alone, and the backward recomputes one chunk's logits after the other. The model's
code stays its own, so it works for every causal model that gives its loss function what its head returned.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from bench.trial.outcome import CannotExistError
from bench.workload.state import NotInForceError, Run

_IGNORED = -100  # the label of what has no next token


@dataclass
class ChunkedLoss:
    """The loss function of a causal model, in place of transformers' ForCausalLMLoss.

    Attributes:
        head: computes logits [tokens, vocabulary] from hidden states [tokens, hidden].
        chunks: how many parts the tokens are divided into.
        kind: the model's type, for messages.
        chunks_run: how many chunks' logits were computed since it was set to 0, recomputed ones too.
        logits_bytes: of the largest chunk's logits, as the head returned them.
    """

    head: Callable[[torch.Tensor], torch.Tensor]
    chunks: int
    kind: str
    hidden: torch.Tensor | None = None
    chunks_run: int = 0
    logits_bytes: int = 0

    def defer(self, hidden: torch.Tensor) -> torch.Tensor:
        """In place of the head's forward: returns the hidden states [batch, tokens, hidden] as they are."""
        self.hidden = hidden
        return hidden

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """The mean cross-entropy of the next tokens.

        Args:
            logits: what the model made of what its head returned: the hidden states.
            labels: [batch, tokens] int64.
            vocab_size: not used; the head has it.
            num_items_in_batch: labels of all micro-steps, as the Trainer counts them; None: those given
            here.

        Raises:
            CannotExistError: the model changes logits after its head, which chunks would leave out.
        """
        hidden, self.hidden = self.hidden, None
        if logits is not hidden:
            raise CannotExistError(
                f"loss=chunked: {self.kind} changes its logits between its head and its loss"
            )
        following = functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:].reshape(-1)
        parts = zip(
            logits.view(-1, logits.shape[-1]).chunk(self.chunks), following.chunk(self.chunks), strict=True
        )
        total = torch.zeros((), device=logits.device)
        for part, targets in parts:
            total = total + checkpoint(
                self._sum, part, targets, use_reentrant=False, preserve_rng_state=False
            )
        return total / ((following != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    def _sum(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed cross-entropy of a chunk of tokens, in float32 as transformers computes it."""
        logits = self.head(hidden)
        self.chunks_run += 1
        self.logits_bytes = max(self.logits_bytes, logits.nbytes)
        return functional.cross_entropy(logits.float(), targets, ignore_index=_IGNORED, reduction="sum")


def apply(run: Run) -> None:
    """Makes the model's head return its input, and its loss function run the head.

    Raises:
        CannotExistError: the model is no causal one, or does not compute its loss by its loss function.
    """
    loss = run.trial.loss
    if not loss.chunked or run.trial.workload.inference:
        return
    model: Any = next(m for m in run.model.modules() if isinstance(m, PreTrainedModel))
    kind = run.model_config.model_type
    head = model.get_output_embeddings()
    calls = inspect.unwrap(type(model).forward).__code__.co_names
    if not isinstance(head, nn.Module) or "loss_function" not in calls:
        raise CannotExistError(f"loss=chunked: {kind} does not call its model.loss_function")
    if model.loss_function is not ForCausalLMLoss:
        raise CannotExistError(f"loss=chunked is of models that predict the next token: not of {kind}")
    if run.trial.loop.is_sft:  # whose loss has chunks of its own
        return
    run.chunked_loss = ChunkedLoss(head.forward, loss.chunks, kind)
    head.forward = run.chunked_loss.defer
    model.loss_function = run.chunked_loss


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Chunks of a micro-step, how many were recomputed, and bytes of the largest chunk's logits."""
    chunked: ChunkedLoss | None = run.chunked_loss
    if chunked is None:
        return dict
    chunked.chunks_run = chunked.logits_bytes = 0

    def evidence() -> dict[str, Any]:
        steps = run.micro_steps
        trial = run.trial
        tokens = trial.micro_batch_size * trial.seq_len
        size = math.ceil(tokens / trial.loss.chunks)
        expected = math.ceil(tokens / size)
        if chunked.chunks_run != 2 * expected * steps:
            raise NotInForceError(
                f"loss=chunked: {chunked.chunks_run} chunks in {steps} micro-steps, not twice {expected}"
            )
        return {
            "loss_chunks": expected,
            "recomputed_loss_chunks": chunked.chunks_run // steps - expected,
            "largest_logits_bytes": chunked.logits_bytes,
        }

    return evidence
