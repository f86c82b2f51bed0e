"""LoRA: low-rank adapters beside frozen linears, by peft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import peft
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import transformers_weight_conversion as weight_conversion
from torch import nn

from bench.trial.outcome import CannotExistError, in_one_line
from bench.workload.architectures import DTYPES
from bench.workload.experts import fused_experts
from bench.workload.state import NotInForceError, Run
from bench.workload.tensors import computes_as_linear, parameter_counts, quantised_linears


def apply(run: Run) -> None:
    """Wraps the model by peft, the adapters on meta like everything else at this point.

    Raises:
        CannotExistError: peft cannot adapt a module of this architecture.
        ValueError: `lora.targets` names no module of it.
    """
    lora = run.trial.lora
    if not lora.enabled:
        return
    targets: str | list[str] = lora.targets
    if lora.targets != "all-linear":
        targets = lora.targets.split("+")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_other_than_linear(run.model) if lora.targets == "all-linear" else None,
        task_type=_task_type(run.model),
    )
    if isinstance(targets, list):
        _require_all(targets, run.model)
    if run.trial.loop.name == "trainer" and run.trial.quantises_weights:  # TRL does not prepare it
        _prepare_quantised(run)
    try:
        with _linears_alone(run):
            run.model = peft.get_peft_model(run.model, config, low_cpu_mem_usage=True)
            for _, adapter in _adapters(run.model):
                adapter.data = adapter.data.to(DTYPES[run.trial.adapter_dtype])
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        kind = run.model.config.model_type  # type: ignore[union-attr]
        raise CannotExistError(f"peft cannot adapt {kind}: {in_one_line(error)}") from error


def _prepare_quantised(run: Run) -> None:
    """As people prepare a quantised model: peft freezes it and widens what is not quantised to float32."""
    peft.prepare_model_for_kbit_training(run.model, use_gradient_checkpointing=False)


def _adapters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' parameters, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if "lora_" in name)


def _other_than_linear(model: nn.Module) -> list[str] | None:
    """Modules that are linears to peft and compute something else: routers that return what they chose."""
    quantised = set(quantised_linears(model))
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in quantised and not computes_as_linear(module)
    ]
    return others or None


def _task_type(model: Any) -> str | None:
    """peft's word for what the model is trained for; None for a masked language model, which has none."""
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None


def _linears_alone(run: Run) -> AbstractContextManager[Any]:
    """Inside, peft takes module names as they are where experts will be stored in 4 bits.

    For mixtures of experts peft takes the names of projections, "all-linear" included, to mean the fused
    experts too, which were linears in transformers 4. Its adapter of a parameter cannot lie over the 4-bit
    parametrization of bitsandbytes (ParamWrapper in peft/tuners/lora/layer.py makes the packed parameter
    require gradients), so there only linears get adapters.
    """
    packs_experts = run.trial.precision.quantization == "nf4" and any(fused_experts(run.model.modules()))
    if not packs_experts:
        return nullcontext()
    return mock.patch.object(
        weight_conversion, "convert_peft_config_for_transformers", lambda *_, **__: None
    )


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
            found["adapter_dtypes"] = sorted(
                {str(p.dtype).removeprefix("torch.") for _, p in _adapters(run.model)}
            )
            if found["adapter_dtypes"] != [run.trial.adapter_dtype]:
                raise NotInForceError(f"lora.dtype: adapters are in {', '.join(found['adapter_dtypes'])}")
            wrappers = [m for m in run.model.modules() if isinstance(m, ParamWrapper)]
            if on_experts := sum(wrapper.num_experts > 1 for wrapper in wrappers):  # others are routers
                found["lora_expert_parameters"] = on_experts
        return found

    return evidence
