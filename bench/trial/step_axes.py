"""The axes of the step itself, typed: what it does beside the model and its memory-saving techniques.

As in `axes.py` each is frozen, and checked when it is made. Must import neither Hydra nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.trial.axes import at_least, one_of


@dataclass(frozen=True)
class Loss:
    """How the cross-entropy is computed; `chunks` matters only where it is chunked."""

    name: str
    chunks: int = 8

    def __post_init__(self) -> None:
        one_of("loss.name", self.name, ("full", "chunked"))
        at_least("loss.chunks", self.chunks, 1)

    @property
    def chunked(self) -> bool:
        """Whether only one chunk's logits exist at a time."""
        return self.name == "chunked"


@dataclass(frozen=True)
class Loop:
    """Whose training loop runs the steps."""

    name: str

    def __post_init__(self) -> None:
        one_of("loop.name", self.name, ("bare", "trainer", "sft"))

    @property
    def is_trainer(self) -> bool:
        """Whether transformers' Trainer runs the steps, or TRL's SFTTrainer, which is one."""
        return self.name != "bare"

    @property
    def is_sft(self) -> bool:
        """Whether TRL's SFTTrainer runs the steps."""
        return self.name == "sft"
