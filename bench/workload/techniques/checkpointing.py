"""Activation checkpointing: torch's wrapper around each block.

The wrapper goes on before sharding, so that FSDP's hooks stay outside it and a recomputed block is
gathered once. It is the non-reentrant kind, with one exception. bitsandbytes' int8 matmul keeps its
input on its own autograd context instead of saving it through autograd. The non-reentrant kind works by
intercepting saved tensors and cannot free that input. The reentrant kind runs the first forward without
a graph, so it is used there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bench.trial.outcome import CannotExistError
from bench.workload.forwards import watch_forwards
from bench.workload.state import NotInForceError, Run

_MATMUL_AND_ATTENTION = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "bitsandbytes::gemm_4bit",
)


def _keep_costly_outputs(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """The selective policy: keep outputs of matmuls and attention, recompute everything else."""
    if op.name().split(".")[0] in _MATMUL_AND_ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def apply(run: Run) -> None:
    """Wraps each block; `run.blocks` then holds the wrappers.

    Raises:
        CannotExistError: transformers marks no module of this architecture as a block.
    """
    level = run.trial.checkpointing.name
    if level == "off":
        return
    if not run.blocks:
        raise CannotExistError(
            f"{run.model_config.model_type} has no block that can be checkpointed: "
            "transformers makes none of its modules a GradientCheckpointingLayer"
        )
    if run.trial.loop.is_trainer:  # which asks the model for transformers' own
        return
    reentrant = run.trial.precision.quantization == "int8"
    options: dict[str, Any] = {"checkpoint_impl": CheckpointImpl.NO_REENTRANT}
    if level == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_costly_outputs)
    elif reentrant:
        options["checkpoint_impl"] = CheckpointImpl.REENTRANT
        _require_input_gradients(run.model)
    for name, block in run.named_blocks():
        run.model.set_submodule(name, checkpoint_wrapper(block, **options))


def _require_input_gradients(model: nn.Module) -> None:
    """Makes the embeddings' output require gradients; else, with frozen ones, no block gets any."""
    shared = model.get_input_embeddings().weight  # type: ignore[operator]
    for module in model.modules():  # an encoder-decoder has two modules over one weight
        if isinstance(module, nn.Embedding) and module.weight is shared:
            module.register_forward_hook(lambda _module, _args, out: out.requires_grad_(True))


def _nothing() -> None:
    pass


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """How many blocks ran their forward a second time within one step.

    Blocks that never run, as those for pictures where there is only text, have nothing to recompute.
    """
    calls: Counter[nn.Module] = Counter()
    watched = [
        watch_forwards(block, partial(calls.update, (block,)), _nothing) for _, block in run.named_blocks()
    ]

    def evidence() -> dict[str, Any]:
        for end in watched:
            end()
        if run.trial.workload.inference:
            return {"blocks": len(watched)}
        steps = run.micro_steps
        recomputed = sum(1 for n in calls.values() if n > steps)
        if run.trial.checkpointing.name != "off" and (not calls or recomputed < len(calls)):
            raise NotInForceError(f"checkpointing: {recomputed} of {len(calls)} blocks were recomputed")
        found = {"blocks": len(watched), "recomputed_blocks": recomputed}
        if unused := len(watched) - len(calls):
            found["unused_blocks"] = unused
        return found

    return evidence
