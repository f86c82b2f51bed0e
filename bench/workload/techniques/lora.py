"""LoRA: low-rank adapters beside frozen linears, by peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from torch import nn

from bench.trial.outcome import in_one_line
from bench.workload.state import CannotCombineError, NotInForceError, Run
from bench.workload.tensors import computes_as_linear, parameter_counts, quantised_linears


def apply(run: Run) -> None:
    """Wraps the model by peft, the adapters on meta like everything else at this point.

    Raises:
        CannotCombineError: peft cannot adapt a module of this architecture.
        ValueError: `lora.targets` names no module of it.
    """
    lora = run.trial.lora
    if not lora.enabled:
        return
    targets: str | list[str] = lora.targets
    if lora.targets != "all-linear":
        targets = lora.targets.split("+")
    seq2seq = run.model.config.is_encoder_decoder  # type: ignore[union-attr]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_other_than_linear(run.model) if lora.targets == "all-linear" else None,
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
    )
    if isinstance(targets, list):
        _require_all(targets, run.model)
    try:
        run.model = peft.get_peft_model(run.model, config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        kind = run.model.config.model_type  # type: ignore[union-attr]
        raise CannotCombineError(f"peft cannot adapt {kind}: {in_one_line(error)}") from error


def _other_than_linear(model: nn.Module) -> list[str] | None:
    """Modules that are linears to peft and compute something else: routers that return what they chose."""
    quantised = set(quantised_linears(model))
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in quantised and not computes_as_linear(module)
    ]
    return others or None


def _require_all(targets: list[str], model: nn.Module) -> None:
    """Raises ValueError for a name that is no module's. peft raises only if none of the names is one."""
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in targets if target not in ends]
    if missing:
        names = {name.rpartition(".")[2] for name, m in model.named_modules() if hasattr(m, "weight")}
        said = f"no module is called {', '.join(missing)}; this model has {', '.join(sorted(names))}"
        raise ValueError(f"lora.targets: {said}")


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Adapted modules and the share of the parameters that trains."""

    def evidence() -> dict[str, Any]:
        total, trainable = parameter_counts(run)
        found: dict[str, Any] = {"trainable_fraction": trainable / total}
        if run.trial.lora.enabled:
            adapters = sum(1 for name, _ in run.model.named_modules() if name.endswith(".lora_A"))
            if not adapters or trainable >= total:
                raise NotInForceError("lora=on: no module was adapted")
            found["lora_modules"] = adapters
        return found

    return evidence
