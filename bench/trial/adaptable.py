"""What LoRA's targets may be called: the matrices of each model family, by their modules' names.

In: a trial. Out: names that are wrong. The names are those of transformers' classes; a test compares them.
A model by configuration may have any names: only its own classes know. Must not import torch.
"""

from __future__ import annotations

from bench.trial.spec import Trial

_NAMES = {
    "llama": "down_proj embed_tokens gate_proj k_proj lm_head o_proj q_proj up_proj v_proj",
    "opt": "embed_positions embed_tokens fc1 fc2 k_proj lm_head out_proj q_proj v_proj",
    "gpt2": "c_attn c_fc c_proj lm_head wpe wte",
    "mt5": "embed_tokens k lm_head o q relative_attention_bias shared v wi_0 wi_1 wo",
}
MATRICES = {family: names.split() for family, names in _NAMES.items()}


def foreign_targets(trial: Trial) -> list[str]:
    """The targets that are no matrix of this trial's model; empty where only its checkpoint knows."""
    names = MATRICES.get(trial.model.family)
    if not trial.lora.enabled or trial.lora.targets == "all-linear" or trial.model.by_config:
        return []
    return [] if names is None else [name for name in trial.lora.targets.split("+") if name not in names]


def unknown_targets(trial: Trial) -> list[str]:
    """The targets that are no matrix of any family."""
    known = {name for names in MATRICES.values() for name in names}
    return [name for name in foreign_targets(trial) if name not in known]
