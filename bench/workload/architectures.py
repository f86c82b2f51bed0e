"""Architecture numbers to a transformers model whose parameters exist only as shapes.

Every model starts on the meta device, so that no memory is spent on weights that are about to be quantised
or sharded. `weights.py` gives the parameters their values later, module by module. Dropout is zero
everywhere: its masks take memory that differs between devices and would blur comparisons.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

from bench.trial.axes import Model
from bench.trial.spec import Trial

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# No special tokens: the tokens are random, and the default ids may lie outside a small vocabulary.
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _llama(model: Model) -> Any:
    return transformers.LlamaConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        **_NO_TOKENS,
    )


def _opt(model: Model) -> Any:
    return transformers.OPTConfig(
        hidden_size=model.hidden_size,
        word_embed_proj_dim=model.hidden_size,
        ffn_dim=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        dropout=0.0,
        attention_dropout=0.0,
        **_NO_TOKENS,
    )


def _gpt2(model: Model) -> Any:
    return transformers.GPT2Config(
        n_embd=model.hidden_size,
        n_inner=model.intermediate_size,
        n_layer=model.layers,
        n_head=model.heads,
        vocab_size=model.vocab_size,
        n_positions=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_NO_TOKENS,
    )


def _mt5(model: Model) -> Any:
    return transformers.MT5Config(
        d_model=model.hidden_size,
        d_ff=model.intermediate_size,
        num_layers=model.layers,
        num_decoder_layers=model.layers,
        num_heads=model.heads,
        d_kv=model.head_dim,
        vocab_size=model.vocab_size,
        tie_word_embeddings=model.tie_embeddings,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


_CONFIGS = {"llama": _llama, "opt": _opt, "gpt2": _gpt2, "mt5": _mt5}


def config_of(model: Model) -> Any:
    """The transformers configuration of `model`, of its text part if it has several.

    Raises:
        ValueError: transformers does not know the configuration's type, or cannot read its values.
        OSError: `model.pretrained` names neither a directory nor a hub id that can be read.
    """
    if model.config is not None:
        values = _with_real_floats(model.config)
        config = transformers.AutoConfig.for_model(values.pop("model_type")).from_dict(values)
    elif model.pretrained:
        config = transformers.AutoConfig.from_pretrained(model.pretrained)
    else:
        config = _CONFIGS[model.family](model)
    _without_cache(config)
    return config


def _without_cache(config: Any) -> None:
    """A step of training keeps no keys and values; a model of several parts asks each part's configuration.

    Else a checkpointed block that is recomputed finds what its first run has put into the cache.
    """
    config.use_cache = False
    for part in vars(config).values():
        if isinstance(part, transformers.PreTrainedConfig):
            _without_cache(part)


def _with_real_floats(value: Any) -> Any:
    """What a config.json holds, with floats for what transformers writes as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {name: _with_real_floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_real_floats(inner) for inner in value]
    return value


def resolved(model: Model) -> Model:
    """The model with the numbers of its configuration; one that is given by numbers, as it is.

    A number that the architecture does not have is 0: a state-space model has no heads.

    Raises:
        OSError: `model.pretrained` names neither a directory, nor a config.json, nor a readable hub id.
        ValueError: transformers does not know the configuration's type, or cannot read its values.
    """
    if not model.by_config:
        return model
    config = config_of(model)
    text = config.get_text_config(decoder=True)

    def number(*names: str) -> int:
        values = (_attribute(text, name) for name in names)
        return next((value for value in values if isinstance(value, int) and value), 0)

    hidden, heads = number("hidden_size", "d_model"), number("num_attention_heads")
    return replace(
        model,
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", "d_ff", "ffn_dim", "n_inner") or 4 * hidden,
        layers=number("num_hidden_layers", "num_layers"),
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim", "d_kv") or (hidden // heads if heads else 0),
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        tie_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        config={**(model.config or config.to_dict()), "is_encoder_decoder": config.is_encoder_decoder},
    )


def _attribute(config: Any, name: str) -> Any:
    """An attribute of a configuration; None where it has none, or another one for each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError, where transformers has it
        return None


def auto_class(config: Any) -> Any:
    """The transformers class that trains `config` with a language-modelling loss.

    A configuration whose `architectures` name a masked language model is trained as one; so is a type that
    has no other.
    """
    is_causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    is_sequence_to_sequence = type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if is_sequence_to_sequence and (config.is_encoder_decoder or not is_causal):
        return transformers.AutoModelForSeq2SeqLM
    if not is_causal or str((config.architectures or ("",))[0]).endswith("ForMaskedLM"):
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForCausalLM


class _HugeOnMeta(TorchFunctionMode):
    """Makes huge tensors on the meta device at once.

    accelerate makes each parameter on the CPU before it moves it to meta. One block of DeepSeek-V3 has a
    parameter of 28 GiB, more than many hosts can promise. No buffer is as large.
    """

    _elements = 2**28

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            sizes = args[0] if args and isinstance(args[0], tuple | list) else args
            if math.prod(sizes) > self._elements:
                kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def on_meta(trial: Trial) -> nn.Module:
    """The model in training mode: parameters on the meta device in the trial's parameter dtype.

    Buffers are real, on the CPU: they are small, and some (rotary frequencies) are computed only when the
    model is constructed.
    """
    config = config_of(trial.model)
    with _HugeOnMeta(), init_empty_weights(include_buffers=False):
        model: nn.Module = auto_class(config).from_config(config, dtype=DTYPES[trial.precision.param_dtype])
    model.tie_weights()  # type: ignore[operator]  # constructing on meta unties what was tied
    if config.model_type in ("t5", "mt5") and not _ties_embeddings(trial.model):
        _untie_head(model)
    return model.train()


def _ties_embeddings(model: Model) -> bool:
    """Whether the output head is the embedding, by what was asked for."""
    if model.by_config:
        return bool((model.config or {}).get("tie_word_embeddings", True))
    return model.tie_embeddings


def _untie_head(model: Any) -> None:
    """transformers 5 ties the head of T5 and mT5 whatever the config says; mT5 and T5 v1.1 do not."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight))


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated transformer blocks by their names: what is checkpointed and sharded one by one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    }


def attention_of(config: Any) -> str:
    """The attention implementation transformers chose: sdpa, eager, ..."""
    return str(config._attn_implementation)
