"""Executes the notebooks of analysis/ on a results folder, in fresh kernels, and writes them as HTML pages.

A kernel runs this interpreter, whichever kernels are installed, and keeps its files in a temporary folder.
The stored notebooks are read and never written. A page holds the executed cells and a few lines of CSS: it
loads nothing, and its content security policy forbids scripts and every request.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

from bench.paths import ROOT, SHIPPED

ANALYSIS = SHIPPED / "analysis"
NAMES = ("memory", "throughput", "prediction", "comparison")

_CONCURRENT_KERNELS = 2
_STARTUP_SECONDS = 300  # for a kernel to start, on a busy machine

Say = Callable[[str], None]


class NotRenderedError(RuntimeError):
    """A cell failed; the message names each notebook and cell, with the exception's last line."""


def render(
    results_dir: Path,
    target: Path,
    say: Say = print,
    *,
    baseline_dir: Path | None = None,
    analysis: Path = ANALYSIS,
    names: tuple[str, ...] = NAMES,
) -> list[Path]:
    """Executes the notebooks on a results folder and writes `target/notebooks/NAME.html`.

    Args:
        results_dir: the folder that holds `trials`.
        target: the folder in which `notebooks/` is made.
        say: called with one line for each notebook.
        baseline_dir: the results folder that the comparison compares with; None takes the one that
            BENCH_BASELINE_DIR names, and without it the comparison divides `results_dir` into two parts.
        analysis: the folder of the notebooks.
        names: the names of the notebooks to execute.

    Returns:
        The pages, in the order of `names`.

    Raises:
        NotRenderedError: a cell failed. The other notebooks' pages are written; an older page of the
            failing one is deleted.
        OSError: a page cannot be written.
    """
    environment = {"BENCH_RESULTS_DIR": str(results_dir.absolute())}
    baseline = str(baseline_dir or os.environ.get("BENCH_BASELINE_DIR", ""))
    if baseline:
        environment["BENCH_BASELINE_DIR"] = str(Path(baseline).expanduser().absolute())
    pages = {name: target / "notebooks" / f"{name}.html" for name in names}
    (target / "notebooks").mkdir(parents=True, exist_ok=True)

    async def render_all() -> list[str | None]:
        slots = asyncio.Semaphore(_CONCURRENT_KERNELS)
        renders = (_render_one(analysis / f"{n}.ipynb", pages, environment, slots, say) for n in names)
        return await asyncio.gather(*renders)

    failures = list(filter(None, asyncio.run(render_all())))
    if failures:
        raise NotRenderedError("\n".join(failures))
    return list(pages.values())


async def _render_one(
    path: Path, pages: dict[str, Path], environment: dict[str, str], slots: asyncio.Semaphore, say: Say
) -> str | None:
    """Writes one notebook's page. Returns what failed, or None."""
    async with slots:
        started = time.monotonic()
        page = pages[path.stem]
        page.unlink(missing_ok=True)
        try:
            notebook = await executed(path, environment)
        except NotRenderedError as error:
            say(f"notebooks: {error}")
            return str(error)
        page.write_text(_page(notebook, path.stem, list(pages)), encoding="utf-8")
        say(f"notebooks: {path.stem} in {time.monotonic() - started:.1f} s: {page}")
        return None


async def executed(path: Path, environment: dict[str, str]) -> Any:
    """The notebook with its outputs, executed in a new kernel that is ended afterwards.

    Args:
        path: the notebook; the kernel runs in its folder.
        environment: environment variables in addition to this process's own.

    Raises:
        NotRenderedError: a cell failed, or the kernel died.
    """
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        manager = _manager(Path(place))
        client = NotebookClient(notebook, km=manager, timeout=None, startup_timeout=_STARTUP_SECONDS)
        number = 0
        try:
            inherited = os.environ | environment | _environment(Path(place))
            await client.async_start_new_kernel(cwd=str(path.parent), env=inherited)
            await client.async_start_new_kernel_client()
            for number, cell in enumerate(notebook.cells):
                await client.async_execute_cell(cell, number)
        except CellExecutionError as error:
            last = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
            raise NotRenderedError(_failure(path, notebook.cells[number], number, last)) from None
        except (DeadKernelError, RuntimeError) as error:
            raise NotRenderedError(_failure(path, notebook.cells[number], number, f"{error}")) from None
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
    return notebook


def _failure(path: Path, cell: Any, number: int, reason: str) -> str:
    """A sentence that names the notebook and the cell that failed, its first line, and the reason."""
    first = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"{path.name}, cell {number + 1} ({cell.get('id', 'no id')}, `{first.strip()}`): {reason}"


def _manager(place: Path) -> AsyncKernelManager:
    """The manager of a kernel that runs this interpreter; the kernel's files lie in `place`."""
    kernel = place / "kernels" / "bench"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    argv.append("--HistoryManager.enabled=False")
    spec = {"argv": argv, "display_name": "bench", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(place / "kernels")], ensure_native_kernel=False)
    return AsyncKernelManager(
        kernel_name="bench",
        kernel_spec_manager=specs,
        connection_file=str(place / "kernel.json"),
        transport="ipc",  # sockets in `place`: no port that another kernel could take
        ip=str(place / "socket"),
    )


def _environment(place: Path) -> dict[str, str]:
    """Environment variables for a kernel: no start-up files of the user's, `bench` of this checkout."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return {
        "IPYTHONDIR": str(place / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(place),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _page(notebook: Any, name: str, names: list[str]) -> str:
    """The executed notebook as an HTML page that loads no other file."""
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="basic",  # the cells alone: the templates with a head load scripts from elsewhere
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    cells, _ = exporter.from_notebook_node(notebook)
    links = " ".join(
        f"<b>{html.escape(other)}</b>"
        if other == name
        else f'<a href="{html.escape(other)}.html">{html.escape(other)}</a>'
        for other in names
    )
    return _HTML.format(title=html.escape(name), style=_CSS.strip(), links=links, cells=cells)


_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<nav>{links}</nav>
<main>
{cells}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 62rem; background: #fff; color: #222;
       font: 15px/1.5 system-ui, sans-serif; }
nav { display: flex; gap: 1.25rem; border-bottom: 1px solid #ddd; padding-bottom: .5rem; }
a { color: #0072b2; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; }
code, pre { font: 12.5px/1.45 ui-monospace, monospace; }
.highlight { background: #f6f6f6; border-left: 3px solid #ddd; padding: .1rem .8rem; overflow-x: auto; }
.highlight pre { margin: .4rem 0; }
.table, figure, .output_text { overflow-x: auto; }
figure { margin: .5rem 0 1rem; }
figure svg { max-width: none; overflow: visible; }
figure svg text { font-family: Arial, "Liberation Sans", Helvetica, sans-serif; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #e4e4e4; }
th { border-bottom-color: #888; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; }
.short, td.number { white-space: nowrap; }
.output_stderr { color: #a33; }
.highlight .k, .highlight .kn, .highlight .ow { color: #0a5c8f; font-weight: 600; }
.highlight .s1, .highlight .s2, .highlight .sa, .highlight .si { color: #8a3b00; }
.highlight .mi, .highlight .mf { color: #00654a; }
"""
