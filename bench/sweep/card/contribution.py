"""Whether a folder of rows can become a reference: `bench/doctor.py contribution=DIR`.

In: a results folder, or a folder of results/reference. Out: `Finding`s, as those of the diagnosis: whether
the rows are complete, can be traced and judged, say nothing of the machine's folders, and are as they were
written. Nothing here changes anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.formatting import count_of, format_bytes
from bench.results import baselines, store
from bench.sweep import resume
from bench.sweep.diagnosis import Finding
from bench.trial.outcome import FINISHED
from bench.trial.spec import from_text

# What a reader needs in order to know where a row comes from, and to predict and repeat it.
_NEEDED = (
    *("overrides", "definition", "environment", "git_commit", "started_at", "hostname"),
    *("torch_version", "transformers_version", "peft_version", "bitsandbytes_version", "python_version"),
)
_NEEDED_OF_A_DEVICE = ("device_name", "device_memory_bytes")  # where the trial came so far
_NEEDED_OF_A_GPU = ("driver_version",)
_NEEDED_IF_OK = ("peak_allocated_bytes", "tracked_peak_bytes", "step_seconds", "evidence", "losses")
_LARGEST_BYTES = 5 * 2**20
_ENOUGH_REPLICATES = 5
# An absolute path of more than one part, but for the system's own (/proc, /sys, /dev), and none in a URL.
_PATH = re.compile(r"(?<![\w.:/~-])(?:~/|/(?!proc/|sys/|dev/)[\w.@+-]+/|[A-Za-z]:\\)[^\s\"',;)]*")


def findings(folder: Path) -> Iterator[Finding]:
    """The finding of each check."""
    rows_folder = folder / "trials" if (folder / "trials").is_dir() else folder
    unreadable: dict[Path, str] = {}
    rows = store.records_in(rows_folder, on_unreadable=unreadable.update) if rows_folder.is_dir() else []
    if not rows:
        yield Finding("rows", f"none in {rows_folder}", "name a results folder, as results/card/DEVICE")
        return
    statuses = Counter(row["status"] for row in rows)
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    yield Finding("rows", f"{len(rows)}: {by_status}")
    yield _as_written(rows, unreadable)
    yield _device(rows)
    yield _complete(rows)
    yield _ended(rows)
    yield _paths(rows)
    yield _judged(rows)
    yield _made_by(rows)
    yield _size(rows_folder)


def _as_written(rows: list[dict[str, Any]], unreadable: dict[Path, str]) -> Finding:
    """Files' checksums, which reading verifies, and each trial's id: the hash of its definition."""
    if unreadable:
        path, reason = next(iter(unreadable.items()))
        found = f"{count_of(len(unreadable), 'file')} not whole, or of something else, as {path}: {reason}"
        return Finding("hashes", found, "take these files out of the folder")
    trials = {row["definition"]: from_text(row["definition"] or "") for row in rows}
    others = [
        row["trial_id"]
        for row in rows
        if (trial := trials[row["definition"]]) is None or trial.trial_id != row["trial_id"]
    ]
    if others:
        found = f"trial_id of {count_of(len(others), 'row')} is not the hash of its definition: {others[0]}"
        return Finding("hashes", found, "contribute rows as bench/run.py of this version wrote them")
    return Finding("hashes", "files are as they were written, and each trial_id is its definition's hash")


def _device(rows: list[dict[str, Any]]) -> Finding:
    others = sum(row["method"] != "measure" for row in rows)
    if others:
        found = f"{count_of(others, 'row')} that nobody measured"
        return Finding("device", found, "leave out rows of method=simulate and method=estimate")
    try:
        device = baselines.device_of(rows)
    except ValueError as error:
        return Finding("device", str(error), "one folder for each device")
    return Finding("device", f"{device}: the folder is results/reference/{baselines.name_of(device)}")


def _complete(rows: list[dict[str, Any]]) -> Finding:
    missing: Counter[str] = Counter()
    for row in rows:
        needed = list(_NEEDED)
        if row["status"] in ("ok", "oom"):
            needed += _NEEDED_OF_A_DEVICE
            on_cpu = (row["device_name"] or "").startswith("CPU")
            needed += () if on_cpu else _NEEDED_OF_A_GPU
        if row["status"] == "ok":
            needed += _NEEDED_IF_OK
        missing.update(column for column in needed if row.get(column) is None)
    if missing:
        named = ", ".join(f"{column} ({count_of(count, 'row')})" for column, count in missing.items())
        remedy = "measure these again with this version, in a checkout of git"
        return Finding("complete", f"missing: {named}", remedy)
    return Finding("complete", "each row says what ran, where, with which versions and commit")


def _ended(rows: list[dict[str, Any]]) -> Finding:
    failed = [row for row in resume.without_resolved_failures(rows) if row["status"] not in FINISHED]
    if failed:
        found = f"{count_of(len(failed), 'trial')} never finished"
        return Finding("ended", found, f"run again, or leave out, as {failed[0]['overrides']}")
    return Finding("ended", "every trial ended in ok, oom or skipped")


def _paths(rows: list[dict[str, Any]]) -> Finding:
    for row in rows:
        for column, value in row.items():
            found = _PATH.search(value) if isinstance(value, str) else None
            if found:
                remedy = "measure from a level of conf/model or a hub id, not from a folder of this machine"
                return Finding("paths", f"{column} of {row['trial_id']} names {found[0]}", remedy)
    return Finding("paths", "no row names a folder of the machine")


def _judged(rows: list[dict[str, Any]]) -> Finding:
    """How far speed can be judged: no fault where it cannot, since memory can."""
    ok = [row for row in rows if row["status"] == "ok"]
    counts = Counter(row["trial_id"] for row in ok)
    enough = sum(count >= _ENOUGH_REPLICATES for count in counts.values())
    disturbed = sum(bool(row["device_shared"] or row["device_throttled"]) for row in ok)
    found = f"speed is judged of {enough} of {count_of(len(counts), 'trial')} (five replicates)"
    if disturbed:
        found += f"; {count_of(disturbed, 'row')} shared the device, or it was throttled"
    return Finding("speed", found)


def _made_by(rows: list[dict[str, Any]]) -> Finding:
    commits = {str(row["git_commit"])[:12] for row in rows}
    changed = sum(bool(row["git_dirty"]) for row in rows)
    found = f"of {count_of(len(commits), 'commit')}: {', '.join(sorted(commits))}"
    if changed:
        found += f"; {count_of(changed, 'row')} of a changed checkout: say what was changed"
    return Finding("code", found)


def _size(folder: Path) -> Finding:
    files = [path for path in folder.rglob("*.parquet") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    found = f"{count_of(len(files), 'file')}, {format_bytes(size)}"
    if size <= _LARGEST_BYTES:
        return Finding("size", found)
    return Finding("size", found, "merge them: python bench/compact.py results_dir=DIR")
