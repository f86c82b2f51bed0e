"""Trial -> Run: a model, an optimizer and batches on a device, with the techniques applied in order."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bench.trial.outcome import CannotExistError
from bench.trial.platform import Platform, platform_of
from bench.trial.spec import Trial
from bench.workload import architectures
from bench.workload.loops.sft import SftLoop
from bench.workload.loops.trainer import TrainerLoop
from bench.workload.state import Run
from bench.workload.techniques import PLACING, SHAPING

_SPARE_ROWS = 2


def build(trial: Trial, device: torch.device, rank: int = 0, platform: Platform | None = None) -> Run:
    """Everything a step needs, ready for the first one.

    Args:
        trial: what to build.
        device: where it trains.
        rank: this process among the trial's ranks; ranks share weights and differ in tokens.
        platform: what a simulated trial is about; None: that of `device`.

    Raises:
        torch.OutOfMemoryError: the device cannot hold the model (RuntimeError on the CPU).
        CannotExistError: a technique cannot be applied to this architecture, or it has fewer positions
            than tokens.
        ValueError: a technique's value does not fit this architecture.
    """
    with unset_fake_temporarily():  # tensors on meta must not become fake
        trial = replace(trial, model=architectures.resolved(trial.model))
        run = Run(trial, device, platform or platform_of(device.type), architectures.on_meta(trial))
        _require_positions(run)
        for technique in SHAPING:
            technique.apply(run)
    for technique in PLACING:
        technique.apply(run)
    if trial.workload.inference:
        run.model.eval().requires_grad_(False)
    if trial.loop.is_trainer:
        with unset_fake_temporarily():  # tokens that a dataset holds have values
            host = _batches(trial, trial.model.vocab_size, torch.device("cpu"), rank)
            loop = SftLoop if trial.loop.is_sft else TrainerLoop
            run.trainer = loop(run, [_examples(batch) for batch in host], rank)
        return run
    run.batches = _batches(trial, trial.model.vocab_size, device, rank)
    return run


def _examples(batch: dict[str, torch.Tensor]) -> list[dict[str, list[int]]]:
    """A batch as a dataset holds it: each sequence by itself, on the host, outside of torch."""
    columns = {name: values.tolist() for name, values in batch.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _require_positions(run: Run) -> None:
    """Raises CannotExistError if positions are looked up in a table with fewer rows than tokens."""
    model = run.trial.model
    tokens = max(run.trial.seq_len, run.trial.cached_tokens)
    if not 0 < model.max_positions < tokens:
        return
    for name, module in run.model.named_modules():
        is_table = isinstance(module, nn.Embedding) and ("pos" in name.lower() or name.endswith("wpe"))
        # a few rows more are for padding; a table of another size is of relative positions, or of pictures
        if is_table and model.max_positions <= module.num_embeddings <= model.max_positions + _SPARE_ROWS:
            raise CannotExistError(
                f"{model.label} has {model.max_positions} learned positions, fewer than {tokens} tokens "
                f"(seq_len={run.trial.seq_len})"
            )


def _batches(
    trial: Trial, vocab_size: int, device: torch.device, rank: int
) -> list[dict[str, torch.Tensor]]:
    """One batch for each micro-step: uniform tokens, [micro_batch_size, seq_len] int64."""
    generator = torch.Generator().manual_seed(trial.seed * 1_000_003 + rank)
    shape = (trial.micro_batch_size, trial.seq_len)

    def tokens() -> torch.Tensor:
        return torch.randint(vocab_size, shape, generator=generator).to(device)

    if trial.workload.inference:
        return [{"input_ids": tokens()}]
    batches = []
    for _ in range(trial.grad_accum_steps):
        source = tokens()
        # a decoder learns to continue its input; an encoder-decoder maps a source to a target
        labels = tokens() if trial.model.encoder_decoder else source
        batches.append({"input_ids": source, "labels": labels})
    return batches
