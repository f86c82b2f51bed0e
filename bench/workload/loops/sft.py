"""loop=sft: the steps of a plan, run by TRL's SFTTrainer, which is a Trainer with another loss.

In: a built run. Out: the same run, in the hands of an SFTTrainer. It gets the trial's tokens as they are,
and its own collator makes batches of them, with a mask of ones. Its defaults hold for all that a trial does
not say. What differs from the Trainer: the loss is computed from hidden states by tiles of logits, and each
micro-step also computes the entropy and the accuracy of its tokens.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bench.workload.loops.trainer import Examples, TrainerLoop

# Both are on in SFTConfig where nothing is said, so a trial without them says so.
_ON_BY_DEFAULT = {"bf16": False, "gradient_checkpointing": False}
# The tokens are those of the trial already, and none is cut off.
_AS_THEY_ARE = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
_PADDING = "<pad>"


class SftLoop(TrainerLoop):
    """An SFTTrainer over a run, and what was seen of its steps."""

    def _arguments(self, **about: Any) -> dict[str, Any]:
        return _ON_BY_DEFAULT | super()._arguments(**about) | _AS_THEY_ARE

    def _made(self, folder: str, arguments: dict[str, Any], batches: list[Examples], optimizer: Any) -> Any:
        import trl  # an extra, and slow to import

        config = self._on_this_device(trl.SFTConfig(folder, **arguments))
        # A benchmark does not report its trials to others.
        with mock.patch.object(trl.SFTTrainer, "_send_telemetry", lambda _trainer: None):
            return trl.SFTTrainer(
                model=self.run.model,
                args=config,
                train_dataset=self._dataset(batches, config.max_steps),
                processing_class=_tokenizer(),
                optimizers=(optimizer, None),
            )

    def _dataset(self, batches: list[Examples], steps: int) -> Any:
        """The trial's sequences as TRL wants them, in the order of `Tokens`; none is stored twice."""
        import datasets

        trial = self.run.trial
        sequences = [sequence for batch in batches for sequence in batch]
        # ranks take the Trainer's batches in turn
        of_a_step = [
            number * trial.micro_batch_size + sequence
            for number in range(len(batches))
            for _rank in range(trial.world_size)
            for sequence in range(trial.micro_batch_size)
        ]
        return datasets.Dataset.from_list(sequences).select(of_a_step * steps)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that nothing is tokenised with: SFTTrainer asks for one, and for its padding."""
    words = WordLevel({_PADDING: 0}, unk_token=_PADDING)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token=_PADDING)
