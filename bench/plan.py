"""Planning: `python bench/plan.py model=llama-7b gpu=rtx-3090` says what fits and what to pick.

It takes the key=value arguments of bench/run.py, lists included (model=llama-7b,llama-13b), and
  gpu=NAME       a card of conf/gpu/, or auto for the one in this machine
  gpus=8         the number of cards that train together
  margin=0.05    the share of the card's memory to leave free
  tokens=1e9     how much to train: the plan says how many hours that takes
  price_per_hour=0.4  of one card: the plan says what it costs
  format=text    or json, for programs, or markdown, for issues
  results_dir=DIR  combinations measured on that card rank by their measured speed
workload=decode and workload=prefill plan inference: how many sequences fit at once, by precision and
cache. model= also takes a path to a config.json, or a hub id. Nothing is run on a GPU: peaks are simulated.
What was simulated before is kept in a cache ($BENCH_CACHE) and not simulated again. Exit codes: 0 if
something fits, 1 if nothing does, 2 if the command line is wrong or a model cannot be simulated.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

import itertools
import math
from pathlib import Path
from typing import Any

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_FORMATS = ("text", "json", "markdown")
_DEFAULTS = ("seq_len=1024", "micro_batch_size=1")


def main(arguments: list[str]) -> int:
    """Plans, prints, and returns the exit code."""
    from bench.analysis.plans import combinations, planning
    from bench.config import command_line, compose
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.machine import gpu_catalogue
    from bench.paths import RESULTS
    from bench.trial.spec import Trial

    defaults: dict[str, Any] = {
        "gpu": "auto",
        "gpus": 1,
        "margin": 0.05,
        "tokens": 0.0,
        "price_per_hour": 0.0,
        "format": "text",
    }
    defaults |= {"results_dir": RESULTS}
    options = [word for word in arguments if word.partition("=")[0] in defaults]
    trial_words = [word for word in arguments if word not in options and word != "-m"]
    try:
        words = read_key_values(options, defaults)
        cards = [_card(name) for name in words["gpu"].split(",")]
        if not 0 <= words["margin"] < 1:
            raise KeyValueError(f"margin={words['margin']}: must be at least 0 and less than 1")
        if words["gpus"] < 1:
            raise KeyValueError(f"gpus={words['gpus']}: must be at least 1")
        for key in ("tokens", "price_per_hour"):
            if not 0 <= words[key] < math.inf:
                raise KeyValueError(f"{key}={words[key]:g}: must be a number and not negative")
        if words["format"] not in _FORMATS:
            raise KeyValueError(f"format={words['format']}: must be one of {', '.join(_FORMATS)}")
        choices = command_line.choices([*_default_shape(trial_words), *trial_words])
        plans: list[tuple[gpu_catalogue.Gpu, tuple[str, ...], dict[combinations.Words, Trial]]] = []
        axes, tables = _techniques_and_rest(choices)
        for card, table in itertools.product(cards, itertools.product(*tables)):
            fixed = (*table, *(values[0] for values in axes if len(values) == 1))
            plans.append((card, fixed, _trials(fixed, axes, words["gpus"], card)))
    except (KeyValueError, compose.CommandError) as error:
        print(f"bench/plan.py: {error}", file=sys.stderr)
        return 2
    from bench.analysis.plans import plan_export, plan_table
    from bench.processes.simulation_pool import Simulator
    from bench.timing import devices

    any_fits, all_simulated, made = False, True, []
    with Simulator() as predict:
        for card, fixed, trials in plans:
            device = devices.named(card.name)
            answers, failures = planning.answers(trials, card, words["margin"], predict, device)
            if failures and not answers:
                all_simulated = False
                for reason in dict.fromkeys(failure.reason for failure in failures):
                    print(f"bench/plan.py: {' '.join(fixed)}: {reason}", file=sys.stderr)
                continue
            advice = None
            if answers and not any(answer.fits for answer in answers):
                advice = planning.advice(answers, card, words["margin"], predict)
            answers = plan_table.with_measured(answers, card, words["results_dir"])
            any_fits |= any(answer.fits for answer in answers)
            longest = 0
            if answers and answers[0].fits:
                longest = planning.longest_sequence(answers[0], card, words["margin"], predict)
            job = plan_table.Job(words["tokens"], words["price_per_hour"], longest)
            predict.pause()
            reasons = planning.reasons(trials)
            plan = plan_table.Plan(answers, failures, card, fixed, words["margin"], advice, reasons, job)
            made.append(plan)
            if words["format"] == "text":
                plan_table.show_plan(plan)
            elif words["format"] == "markdown":
                print(plan_export.as_markdown(plan), flush=True)
    if words["format"] == "json":
        print(plan_export.as_json(made))
    return 0 if any_fits else 1 if all_simulated else 2


def _default_shape(given: list[str]) -> list[str]:
    """Defaults for the shape, where the command line leaves it open.

    Raises:
        KeyValueError: a key is given that a plan sets itself.
    """
    from bench.config.key_values import KeyValueError

    keys = {word.partition("=")[0] for word in given}
    for key in sorted(keys & {"method", "device", "whole", "formula"}):
        raise KeyValueError(f"{key}: a plan is simulated, for the card that gpu= names")
    return [word for word in _DEFAULTS if word.partition("=")[0] not in keys]


def _card(name: str) -> Any:
    from bench.config.key_values import KeyValueError
    from bench.machine import gpu_catalogue

    cards = gpu_catalogue.catalogue()
    if name in cards:
        return cards[name]
    if name != "auto":
        raise KeyValueError(f"gpu={name}: not in conf/gpu/; choose auto or one of {', '.join(cards)}")
    from bench.machine.nvml import gpu_names

    present = gpu_names()
    if not present:
        raise KeyValueError(f"gpu=auto: this machine has no NVIDIA GPU; choose one of {', '.join(cards)}")
    card = gpu_catalogue.by_device_name(present[0])
    if card is None:
        raise KeyValueError(
            f"gpu=auto: {present[0]} is not in conf/gpu/; add it, or choose one of {', '.join(cards)}"
        )
    return card


def _techniques_and_rest(choices: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Choices of techniques, combined within a table, and the others (models, shapes), a table for each."""
    from bench.trial.vocabulary import TECHNIQUE_AXES

    of_axis = [values[0].partition("=")[0].split(".")[0] for values in choices]
    techniques = [values for values, axis in zip(choices, of_axis, strict=True) if axis in TECHNIQUE_AXES]
    return techniques, [values for values in choices if values not in techniques]


def _trials(
    fixed: tuple[str, ...], axes: list[list[str]], ranks: int, card: Any
) -> dict[tuple[str, ...], Any]:
    from bench.analysis.plans import combinations
    from bench.config import compose
    from bench.config.key_values import KeyValueError

    chosen = {values[0].partition("=")[0].split(".")[0] for values in axes}
    trials = {}
    inference = compose.trial_from(list(fixed)).workload.inference
    if inference and ranks > 1:
        raise KeyValueError(f"gpus={ranks}: inference is planned for one card")
    offered = (
        combinations.inference_combinations(chosen, card)
        if inference
        else combinations.combinations(chosen, ranks, card)
    )
    for combined in offered:
        for varied in itertools.product(*(values for values in axes if len(values) > 1)):
            words = (*varied, *combined)
            trials[words or ("as given",)] = compose.trial_from(
                [*fixed, *words, "method=simulate", "device=cuda"]
            )
    return trials


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
