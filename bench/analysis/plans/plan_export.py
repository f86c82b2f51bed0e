"""A plan for programs and for issues: as JSON, and as Markdown.

In: `plan_table.Plan`. Out: text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from bench import formatting
from bench.analysis.plans import plan_table
from bench.analysis.plans.plan_table import Plan
from bench.analysis.plans.planning import Answer
from bench.trial.vocabulary import CATEGORIES


def as_json(plans: Iterable[Plan]) -> str:
    """A list with an object for each plan. Sizes are in bytes of one rank, rates in tokens per second and
    device, times in seconds; what is not known is null.
    """
    return json.dumps([_plan(plan) for plan in plans], indent=2)


def as_markdown(plan: Plan) -> str:
    """The answer in sentences, the table, and what its words mean."""
    parts = [f"### {plan.title}", *(f"{line.strip()}  " for line in plan.lines)]
    if not plan.answers:
        return "\n".join(parts) + "\n"
    header, rows = plan_table.cells(plan.answers, sizes=False)
    words = [[f"`{combination}`", *row] for combination, *row in rows]
    table = formatting.markdown_table(header, words, header[1:])
    return "\n".join([*parts, "", plan.room_line, "", table, *(f"- {note}" for note in plan.notes)]) + "\n"


def _plan(plan: Plan) -> dict[str, Any]:
    advice = plan.advice
    return {
        "arguments": list(plan.fixed),
        "gpu": plan.card.name,
        "gpu_memory_bytes": plan.card.memory_bytes,
        "margin": plan.margin,
        "answer": plan.lines,
        "longest_sequence": plan.job.longest_sequence or None,
        "advice": None
        if advice is None
        else {
            "closest": list(advice.closest.words),
            "micro_batch_size": advice.micro_batch_size or None,
            "gpus": advice.ranks or None,
            "seq_len": advice.seq_len or None,
            "gpu": advice.card or None,
        },
        "combinations": [_answer(answer) for answer in plan.answers],
        "not_simulated": [
            {"arguments": list(failure.words), "reason": failure.reason} for failure in plan.failures
        ],
        "cannot_exist": plan.reasons,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    low, high = answer.interval or (None, None)
    return {
        "arguments": list(answer.words),
        "micro_batch_size": answer.trial.micro_batch_size,
        "peak_bytes": answer.peak,
        "bytes": {name: answer.columns.get(f"{name}_bytes") for name in CATEGORIES},
        "room_bytes": answer.room,
        "fits": answer.fits,
        "largest_micro_batch": answer.largest,
        "fastest_micro_batch": answer.fastest or None,
        "fastest_peak_bytes": answer.fastest_peak or None,
        "tokens_per_sec_per_device": answer.rate,
        "tokens_per_sec_per_device_low": low,
        "tokens_per_sec_per_device_high": high,
        "measured_tokens_per_sec_per_device": answer.measured,
    }
