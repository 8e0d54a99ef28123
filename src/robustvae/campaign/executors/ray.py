"""The executor of a Ray cluster: this machine's own, or one that runs already."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from robustvae.audit.tasks import Part, Run, Task
from robustvae.campaign.driver import run_tasks
from robustvae.campaign.executors.processes import scratch_folder
from robustvae.campaign.pool import Event, Job, Outcome
from robustvae.campaign.worker import restored
from robustvae.errors import (
    ConfigError,
    MissingExtraError,
    check_count,
    check_number,
    install_command,
)
from robustvae.records import Store
from robustvae.registry import register

_LONGEST_PLACE = 40
"""Characters of a folder for Ray's files: the names of its sockets end at 107."""


@register("executor", "ray")
@final
@dataclass(frozen=True)
class Ray:
    """Computes on a Ray cluster; the model and the inputs are put there once.

    Every worker has the job for itself. A worker that dies is replaced, wherever there is room,
    and its task given to another.

    Args:
        workers: How many.
        threads: Of each of them, and the CPUs that it asks for.
        address: Of a cluster that runs, such as "auto" or "ray://host:10001"; None starts one on
            this machine, which ends with the run.
        gpus: Of each worker; a fraction lets several share one.

    Raises:
        RangeError: Numbers out of range.

    Examples:
        >>> from robustvae.registry import build
        >>> build("executor", "ray:workers=2,gpus=0.5").gpus
        0.5
    """

    workers: int = 2
    threads: int = 1
    address: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_count(self.workers, "workers")
        check_count(self.threads, "threads")
        check_number(self.gpus, "gpus", least=0)

    def run(self, job: Job, run: Run) -> Outcome:
        """Compute what is not stored yet, and return all parts.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: No cluster answers at the address.
        """
        return run_tasks(job, run, lambda store, tell: _Actors(self, job, store))


@final
class _Actors:
    """A pool of Ray actors, each replaced when it dies."""

    def __init__(self, settings: Ray, job: Job, store: Store) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError(
                f"the executor ray needs Ray: {install_command('cluster')}"
            ) from None
        self.ray, self.settings = ray, settings
        self.workers = min(settings.workers, len(job.tasks()))
        # beyond the machine's own cores too: workers then share them
        cores: dict[str, Any] = {}
        if settings.address is None:
            cores["num_cpus"] = self.workers * settings.threads
        self.folder: Path | None = None
        try:
            self.has_started = not ray.is_initialized()
            # Ray's own files, which it leaves where it is killed, are swept with ours
            if self.has_started and settings.address is None:
                self.folder = scratch_folder()
                if len(str(self.folder)) <= _LONGEST_PLACE:
                    cores["_temp_dir"] = str(self.folder)
            ray.init(
                address=settings.address,
                ignore_reinit_error=True,
                include_dashboard=False if settings.address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **cores,
            )
        except Exception as error:  # Ray's client raises many kinds
            line = " ".join(str(error).split())[:200]
            raise ConfigError(f"no Ray cluster at {settings.address!r}: {line}") from None
        bundle = job.bundle()
        self.files = ray.put(dict(bundle.files))
        self.facts = (bundle.loader, settings.threads, store.key)
        self.kind = ray.remote(num_cpus=settings.threads, num_gpus=settings.gpus)(_Worker)
        self.actors = [self._actor() for _ in range(self.workers)]
        self.under_way: dict[Any, tuple[Task, Any]] = {}

    def _actor(self) -> Any:
        return self.kind.remote(self.files, *self.facts)

    def submit(self, task: Task, parts: Mapping[str, Part]) -> None:
        busy = {id(actor) for _, actor in self.under_way.values()}
        actor = next(one for one in self.actors if id(one) not in busy)
        self.under_way[actor.compute.remote(asdict(task), dict(parts))] = (task, actor)

    def wait(self) -> list[Event]:
        ended, _ = self.ray.wait(list(self.under_way), num_returns=1)
        events = []
        for reference in ended:
            task, actor = self.under_way.pop(reference)
            try:
                message = self.ray.get(reference)
            except self.ray.exceptions.RayActorError as error:
                place = self.actors.index(actor)
                with contextlib.suppress(Exception):  # it is dead: make sure, whatever Ray says
                    self.ray.kill(actor)
                self.actors[place] = self._actor()
                events.append(Event("died", task, " ".join(str(error).split())[:120]))
                continue
            if message["kind"] == "fault":
                raise restored(message)
            if message["kind"] == "error":
                events.append(Event("error", task, restored(message)))
            else:
                events.append(Event("done", task, message["part"]))
        return events

    def close(self) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):  # dead already, or the cluster is gone
                self.ray.kill(actor)
        if self.has_started:
            self.ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@final
class _Worker:
    """An actor that has the job; it names what it needs when it is first asked."""

    def __init__(self, files: Mapping[str, bytes], loader: str, threads: int, key: str) -> None:
        self.files, self.loader, self.threads, self.key = files, loader, threads, key
        self.job: Any = None

    def compute(self, task: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        from robustvae.campaign import worker

        if self.job is None:
            import torch

            torch.set_num_threads(self.threads)
            folder = scratch_folder()
            try:
                for name, content in self.files.items():
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                self.job = worker.open_job(self.loader, folder)
            except Exception as error:
                return {"kind": "fault", **worker.described(error)}
            finally:  # an actor may be killed at any time: nothing of it stays
                shutil.rmtree(folder, ignore_errors=True)
        fields = {**task, "needs": tuple(task["needs"])}
        return worker.compute(self.job, Task(**fields), parts, Store(None, self.key))
