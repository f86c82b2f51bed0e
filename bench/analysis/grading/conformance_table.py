"""The conformance table: verdicts as Markdown.

In: verdicts of `conformance.py`. Out: text: how many architectures conform, a line for each, and by name
why the others do not.
"""

from __future__ import annotations

from bench.analysis.grading.conformance import AXES, TOKENS, Verdict
from bench.formatting import markdown_table

_OPENING = f"""# Every architecture of transformers

Written by `python bench/grade.py architectures=true`, never by hand. Each causal and sequence-to-sequence
language model of transformers {{version}} is shrunk to a few hundred thousand parameters, with random
weights, and trained on text alone ({", ".join(TOKENS)}) on a CPU. The error is that of the
simulated peak against the CPU allocator's own count. Where the code of a mixture of experts asks how many
tokens each expert gets, simulation gives all equally many; measured is what the random router does.

`skipped` is what plain transformers, peft or bitsandbytes cannot do with an architecture either: there is
no block that transformers could checkpoint, peft refuses a module, or the code does not run in bfloat16.
The harness says so in one sentence; the share counts the rest, which is called combinable.
`unmeasured` and `unsimulated` are failures of the harness; they count against it.
"""


def summary(verdicts: list[Verdict]) -> list[list[str]]:
    """For each axis: how many train, can be combined with it, are measured, are simulated, and conform."""
    lines = []
    for axis in AXES:
        found = [v for v in verdicts if v.axis == axis]
        possible = [v for v in found if v.status != "skipped"]
        counts = (
            len(found),
            len(possible),
            sum(v.measured_bytes > 0 for v in possible),
            sum(v.simulated_bytes > 0 for v in possible),
            sum(v.conforms for v in possible),
        )
        share = f"{counts[-1] / len(possible):.1%}" if possible else ""
        lines.append([axis, *map(str, counts), share])
    return lines


_COUNTS = ["axis", "trained", "combinable", "measured", "simulated", "within 1 %", "share"]


def page(verdicts: list[Verdict], version: str, names: list[str]) -> str:
    """The whole page.

    Args:
        verdicts: of a walk.
        version: of the installed transformers.
        names: of all architectures; those that a walk has not finished are named.
    """
    trained: dict[str, dict[str, Verdict]] = {}
    for found in verdicts:
        if found.axis:
            trained.setdefault(found.architecture, {})[found.axis] = found
    rows = [
        [name, *(_cell(by_axis[axis]) if axis in by_axis else "" for axis in AXES)]
        for name, by_axis in sorted(trained.items())
    ]
    untrained = [[v.architecture, _plain(v.reason)] for v in verdicts if not v.axis]
    others = [
        [v.architecture, v.axis, _cell(v), _plain(v.reason)] for v in verdicts if v.axis and not v.conforms
    ]
    unfinished = sorted(
        {name for name in names if len(trained.get(name, {})) < len(AXES)} - {name for name, _ in untrained}
    )
    parts = [
        _OPENING.format(version=version),
        markdown_table(_COUNTS, summary(verdicts), _COUNTS[1:]),
        "## By architecture\n\n" + markdown_table(["architecture", *AXES], rows, list(AXES)),
        "## What does not conform\n\n"
        + markdown_table(["architecture", "axis", "status", "why"], sorted(others), []),
        "## What plain transformers does not train here\n\n"
        + markdown_table(["architecture", "why"], sorted(untrained), []),
    ]
    if unfinished:
        parts.insert(2, f"Not walked on every axis yet ({len(unfinished)}): {', '.join(unfinished)}.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(found: Verdict) -> str:
    return f"{found.error:+.2%}" if found.status == "ok" else found.status


def _plain(reason: str) -> str:
    """A reason that a cell of a table can hold."""
    short = reason if len(reason) <= 200 else reason[:200] + " …"
    return short.replace("|", "/").replace("`", "'").replace("<", "‹").replace(">", "›")
