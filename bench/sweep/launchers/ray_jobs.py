"""Hydra's Ray launcher, extended to wait for all tasks, on a Ray cluster or one started on this machine.

The plugin always gives ray.init a size for the object store, which Ray refuses where a cluster is joined
(hydra-ray-launcher 1.2.2: `_core.launch`); here only a cluster that this command starts gets one.
Needs the extra `ray`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_ray_launcher import ray_launcher
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray
from omegaconf import OmegaConf, open_dict
from ray.exceptions import RayError

from bench.sweep import context
from bench.sweep.errors import RefusedError
from bench.sweep.launchers.registry import End, gather

_STORE_BYTES = 80 * 2**20  # close to the least that Ray accepts: only configs and rows go through it


class RayLauncher(ray_launcher.RayLauncher):
    """Each trial is a Ray task."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs; returns what the jobs that ended well returned.

        Raises:
            RefusedError: there is no cluster to run them; the message is Ray's.
            KeyboardInterrupt: passed on, with all tasks cancelled.
        """
        try:
            _join_cluster(OmegaConf.to_container(self.ray_cfg.init, resolve=True))
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise RefusedError(f"ray: {str(error).strip().splitlines()[0]}") from None
        tasks = [_submit(self, overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        context.current().display.print_line(f"{len(tasks)} trials are Ray tasks; Ctrl-C cancels them")
        try:
            return gather(job_overrides, initial_job_idx, _ends(tasks))
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task)
            raise
        finally:
            ray.shutdown()


LAUNCHERS = {f"{ray_launcher.__name__}.RayLauncher": RayLauncher}


def _join_cluster(init: Any) -> None:
    """Joins the cluster that `init` or $RAY_ADDRESS names, or starts one here, for this command alone."""
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    joins = init.get("address") or os.environ.get("RAY_ADDRESS")
    own = {} if joins else {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
    # Ray's default is 15: whatever else runs on the machine would come first, and steps would take longer.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(**{**quiet, **own, **init})


def _submit(launcher: Any, overrides: Sequence[str], number: int) -> Any:
    """Submits one trial as a task; its config is composed as the plugin composes it."""
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config):
        config.hydra.job.id = f"job_id_for_{number}"
        config.hydra.job.num = number
    context, function = launcher.hydra_context, launcher.task_function
    return launch_job_on_ray(context, launcher.ray_cfg.remote, config, function, Singleton.get_state())


def _ends(tasks: list[Any]) -> Iterator[tuple[int, End]]:
    """Index and end of each task, as they end."""
    pending = list(tasks)
    while pending:
        (done, *_), pending = ray.wait(pending, num_returns=1)
        try:
            end: End = ray.get(done)
        except RayError as error:
            end = f"its task failed: {str(error).strip().splitlines()[0]}"
        yield tasks.index(done), end
