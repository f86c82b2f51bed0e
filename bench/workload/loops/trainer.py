"""loop=trainer: the steps of a plan, run by transformers' Trainer.

In: a built run. Out: the same run, in the hands of a Trainer, which prepares the model, makes the
optimizer, fetches batches and steps, all by its own code. A callback carries the plan out: what the plan
does between two steps happens in `on_step_end`, so a step is all that the Trainer does from one
`on_step_end` to the next. Nothing of its loop is replaced. Two methods of its Accelerator are called
through a function of ours, which sees where a phase begins, which loss is differentiated and whether
gradients were clipped: `backward`, `clip_grad_norm_`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.operations import ConvertOutputsToFp32
from torch.utils.data import Dataset
from transformers.trainer_callback import PrinterCallback

from bench.trial.spec import Trial
from bench.workload.loops.plan import Conductor, Enter, unwatched
from bench.workload.loops.trainer_arguments import arguments_of, names_optimizer
from bench.workload.state import Run
from bench.workload.techniques import optimizer

Examples = list[dict[str, list[int]]]


class Tokens(Dataset[dict[str, list[int]]]):
    """The trial's sequences, again and again, in the order in which the Trainer asks for them.

    Ranks take the Trainer's batches in turn (accelerate's BatchSamplerShard), and each finds its own in its
    own dataset. Items are lists, as those of the datasets library.
    """

    def __init__(self, trial: Trial, batches: list[Examples], steps: int) -> None:
        self._batches = batches
        self._sequences = trial.micro_batch_size
        self._ranks = trial.world_size
        self._length = steps * len(batches) * self._sequences * self._ranks

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        batch = index // self._sequences // self._ranks
        return self._batches[batch % len(self._batches)][index % self._sequences]


class TrainerLoop:
    """A Trainer over a run, and what was seen of its steps."""

    def __init__(self, run: Run, batches: list[Examples], rank: int) -> None:
        """Makes TrainingArguments and the Trainer.

        Args:
            run: built but for its optimizer and its batches.
            batches: one for each micro-step of this rank.
            rank: this process among the trial's ranks.
        """
        self.run = run
        self._rank = rank
        trained = [p for p in run.model.parameters() if p.requires_grad]
        on_cpu = run.platform.host_is_device
        self.arguments = self._arguments(epsilon=optimizer.epsilon(run.trial, trained), on_cpu=on_cpu)
        self.optimizer_passed = not names_optimizer(run.trial)
        made = optimizer.made(run.trial, trained) if self.optimizer_passed else None
        self._folder = TemporaryDirectory(prefix="bench-trainer-")
        self._enter: Enter = unwatched
        self._losses: list[torch.Tensor] = []
        with _launched(run, rank):
            here = {"use_cpu": run.device.type == "cpu"}  # a fake step runs there, too
            arguments = copy.deepcopy(self.arguments) | here
            self.trainer = self._made(self._folder.name, arguments, batches, made)
        self.trainer.remove_callback(PrinterCallback)

    def _arguments(self, **about: Any) -> dict[str, Any]:
        """The keyword arguments that a person can paste, as `arguments_of` takes what they are about."""
        return arguments_of(self.run.trial, **about)

    def _made(self, folder: str, arguments: dict[str, Any], batches: list[Examples], optimizer: Any) -> Any:
        """The Trainer."""
        said = self._on_this_device(transformers.TrainingArguments(folder, **arguments))
        return transformers.Trainer(
            model=self.run.model,
            args=said,
            train_dataset=Tokens(self.run.trial, batches, said.max_steps),
            optimizers=(optimizer, None),
        )

    def _on_this_device(self, arguments: Any) -> Any:
        if self.run.device.type != "cpu":
            _pin(arguments, self.run.device)
        return arguments

    @property
    def steps(self) -> int:
        """Steps that the Trainer has counted."""
        return int(self.trainer.state.global_step)

    @property
    def copies_outputs(self) -> bool:
        """Whether accelerate copies what the model returns in 16 bits, logits included, to float32."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped, keep_fp32_wrapper=True)
        return isinstance(getattr(model.forward, "__wrapped__", None), ConvertOutputsToFp32)

    def train(self, conductor: Conductor[Any]) -> None:
        """Runs the steps that a plan asks for."""
        self._call_through()
        self.trainer.add_callback(_Steps(self, conductor))
        with _launched(self.run, self._rank):
            try:
                self.trainer.train()
            finally:
                _forget()

    def _call_through(self) -> None:
        accelerator = self.trainer.accelerator
        backward, clip = accelerator.backward, accelerator.clip_grad_norm_

        def seen_backward(loss: torch.Tensor, **options: Any) -> None:
            self._losses.append(loss.detach())
            self._enter("backward")
            backward(loss, **options)
            if accelerator.sync_gradients:
                self._enter("optimizer")

        def seen_clip(parameters: Any, max_norm: float, *options: Any) -> Any:
            norm = clip(parameters, max_norm, *options)
            if max_norm != float("inf"):
                self.run.gradient_norm = norm
            return norm

        accelerator.backward, accelerator.clip_grad_norm_ = seen_backward, seen_clip

    def prepared(self) -> None:
        """Called when the Trainer has prepared model and optimizer: the run is what it made of them."""
        trainer, run = self.trainer, self.run
        run.model = trainer.model_wrapped
        run.optimizer = trainer.optimizer.optimizer  # inside accelerate's own
        run.scaler = trainer.accelerator.scaler or torch.amp.GradScaler(run.device.type, enabled=False)

    def begin_step(self, enter: Enter) -> None:
        """Called before a step; the first micro-step's batch belongs to its forward."""
        self._enter = enter
        self._losses = []
        enter("forward")

    def begin_micro_step(self) -> None:
        """Called between two micro-steps."""
        self._enter("forward")

    def end_step(self) -> torch.Tensor:
        """Called after a step; returns its loss."""
        self._enter("done")
        self._enter = unwatched
        return sum(self._losses[1:], start=self._losses[0])


class _Steps(transformers.TrainerCallback):
    """Carries the plan out between the Trainer's steps, and ends the training with it."""

    def __init__(self, loop: TrainerLoop, conductor: Conductor[Any]) -> None:
        self._loop = loop
        self._conductor = conductor

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.prepared()
        enter = self._conductor.first()
        assert enter is not None, "the Trainer runs one step at least"
        self._loop.begin_step(enter)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.begin_micro_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        enter = self._conductor.next(self._loop.end_step())
        if enter is None:
            control.should_training_stop = True
        else:
            self._loop.begin_step(enter)


def _pin(arguments: Any, device: torch.device) -> None:
    """Makes the Trainer train on this one device; else it would take all that it sees (DataParallel)."""
    arguments._n_gpu = 1
    arguments.__dict__["_setup_devices"] = device
    torch.accelerator.set_device_index(device)


@contextmanager
def _launched(run: Run, rank: int) -> Iterator[None]:
    """Inside, accelerate finds what its launcher would have said; afterwards it has forgotten it."""
    before, trial = dict(os.environ), run.trial
    if run.is_fake:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(run.device)
    if trial.fsdp.name != "off":
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{run.device.index or rank}"}
        os.environ |= {"WORLD_SIZE": f"{trial.world_size}", "LOCAL_WORLD_SIZE": f"{trial.world_size}"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _forget() -> None:
    """Resets what accelerate and bitsandbytes keep for the whole process, the model among it.

    The next Trainer, and the next optimizer, must not find it.
    """
    bnb.optim.GlobalOptimManager.get_instance().initialize()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
