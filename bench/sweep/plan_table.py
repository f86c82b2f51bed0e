"""What the person sees when a dry run has ended: what its trials would do, and how long they would take.

In: the plans of the trials. Out: text on stdout.
"""

from __future__ import annotations

from rich.markup import escape

from bench import formatting
from bench.sweep import progress
from bench.sweep.schedule.forecast import Planned
from bench.sweep.summary import TableLine, show_lines, unshared_words


def show_plan(plans: list[Planned], budget_seconds: float | None = None) -> None:
    """Prints the table of a dry run: what would run, what does not fit, how long all of it takes, and how
    many trials the sweep's time would be enough for."""
    console = progress.console()
    lines = []
    for label, plan in zip(unshared_words([plan.label.split(" ") for plan in plans]), plans, strict=True):
        forecast = plan.forecast
        peak = capacity = reason = ""
        if forecast is not None:
            reason = forecast.reason or ""
            if forecast.peak_bytes is not None:
                peak = formatting.format_gib(forecast.peak_bytes)
                capacity = formatting.format_gib(forecast.capacity_bytes)
        expected = "" if plan.seconds is None else formatting.format_duration(plan.seconds)
        lines.append(TableLine([label, plan.verdict, peak, capacity, expected], reason))
    subjects = dict.fromkeys(plan.subject for plan in plans)
    console.print(f"\n{escape('; '.join(subjects))}, on this machine's device\n", highlight=False)
    show_lines(console, ["trial", "plan", "predicted peak GiB", "device GiB", "expected"], lines)
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    unknown = len(plans) - len(known)
    text = f"\n{len(plans)} trials, nothing was run. Expected: {formatting.format_duration(sum(known))}"
    if unknown:
        text += f", and {unknown} that no earlier row tells the time of (at most timeout_seconds each)"
    if budget_seconds is not None:
        to_run = [plan.seconds for plan in plans if not plan.done and plan.seconds is not None]
        begun = _begun_in_time(to_run, budget_seconds)
        text += (
            f". budget_seconds={budget_seconds:g} is enough for {begun} of the {len(to_run)} that would run"
        )
    console.print(text, highlight=False)


def _begun_in_time(expected: list[float], budget_seconds: float) -> int:
    """How many trials that take so long would begin, one after the other; a shorter one may follow one that
    is left out."""
    begun = 0
    for seconds in expected:
        if seconds < budget_seconds:
            budget_seconds -= seconds
            begun += 1
    return begun
