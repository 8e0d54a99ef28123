"""An audit as a job of tasks: ranges of inputs x stages, each computed by whoever has the job."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae import registry
from robustvae.attacks.attack import nothing_found
from robustvae.audit.auditor import Auditor
from robustvae.audit.budget import Clock
from robustvae.audit.context import is_defended
from robustvae.audit.outcomes import omission
from robustvae.audit.plan import Plan
from robustvae.audit.protocol import Inputs
from robustvae.audit.store import packed_result
from robustvae.audit.tasks import Bundle, Part, State, Task, Words
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, UnsupportedError
from robustvae.loops import packed, unpacked
from robustvae.models import VAE, checkpoint
from robustvae.models.registry import saved_name
from robustvae.records import QuestionFacts, plain

SCHEMA = 1
"""Of the parts; a part of another number is computed again."""

_PARTS: dict[str, dict[str, type]] = {
    "attacks": {"attacks": list, "first": object, "left_out": list},
    "measures": {"rows": list, "notes": list, "left_out": list},
    "checks": {"probes": dict, "random": bool, "left_out": list},
    "effects": {"damage": list},
}
_ORDER = ("attacks", "effects", "measures", "checks")  # where minutes are counted
_INPUTS, _UNSEEN, _CONSTANT, _LABELS, _SPEC = (
    *("inputs.npy", "unseen.npy", "constant.npy", "labels.npy"),
    "job.json",
)


@final
class AuditJob:
    """The tasks of one audit, and how each is computed.

    Args:
        auditor: What measures.
        header: What decides the numbers, for the key.
        source: What `rv.load` takes for a model that is none of the library's.
        loading: What it takes beside the source.
    """

    bears_failure = False  # an input may fail; where all do, it is the model or the question

    def __init__(
        self,
        auditor: Auditor,
        header: Mapping[str, Any],
        source: str | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        self.auditor = auditor
        self.source = source
        self.loading = dict(loading or {})
        text = json.dumps({"schema": SCHEMA, **plain(dict(header))}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def tasks(self) -> list[Task]:
        """Attacks and measures of every range of inputs, checks and effects of every victim."""
        auditor, plan = self.auditor, self.auditor.plan
        ranges = [
            (begin, min(begin + plan.shard, plan.inputs))
            for begin in range(0, plan.inputs, plan.shard)
        ]
        tasks: list[Task] = []
        undefended: set[int] = set()
        for name, victim in auditor.named.items():
            stages: dict[str, list[Task]] = {"attacks": [], "measures": []}
            count = len(auditor.jobs(name))
            for begin, end in ranges:
                attacks = _task(name, "attacks", begin, end, (), count)
                steps = len(auditor.measures)
                stages["attacks"].append(attacks)
                stages["measures"].append(
                    _task(name, "measures", begin, end, (attacks.key,), steps)
                )
            first = stages["attacks"][0].key
            tasks += stages["attacks"]
            checks = _task(name, "checks", *ranges[0], (first,), 1)
            # early: it is long, reads the first range only, and would else run alone at the end
            tasks += [checks, *stages["measures"]]
            if not is_defended(victim):
                undefended.add(id(victim.vae))
            elif id(victim.vae) not in undefended:
                undefended.add(id(victim.vae))
                tasks += [_task(name, "effects", begin, end, (), 1) for begin, end in ranges]
        if auditor.clock.limited:  # every victim has its first attack before any is measured
            tasks.sort(key=lambda task: _ORDER.index(task.fields["stage"]))
        return tasks

    def compute(self, task: Task, parts: Mapping[str, Part], state: State, say: Words) -> Part:
        """The part of a task, from the parts of those that it needs."""
        name, stage = task.fields["victim"], task.fields["stage"]
        places = range(task.fields["begin"], task.fields["end"])
        label = f"{name}, inputs {places.start + 1} to {places.stop}"

        def step(words: str) -> None:
            say(f"{label}: {words}")

        auditor = self.auditor
        if stage == "attacks":
            return auditor.attacked(name, places, state, step)
        if stage == "effects":
            step("undefended")
            return auditor.undefended_damage(name, places)
        (attacks,) = parts.values()
        if stage == "checks":
            step("checks on the evidence")
            return auditor.probes(name, attacks)
        return auditor.measured_rows(name, places, attacks, state, step)

    def is_valid(self, task: Task, part: Any) -> bool:
        """Whether a stored part has the form of a task's."""
        wanted = _PARTS[task.fields["stage"]]
        if not isinstance(part, dict) or set(part) != set(wanted):
            return False
        if not all(isinstance(part[key], kind) for key, kind in wanted.items()):
            return False
        count = task.fields["end"] - task.fields["begin"]
        if task.fields["stage"] == "measures":
            columns = {column.id for column in self.auditor.columns}
            return all(isinstance(row, dict) and set(row) == columns for row in part["rows"])
        if task.fields["stage"] == "effects":
            return len(part["damage"]) == count
        return True

    def singles(self, task: Task) -> list[Task]:
        """The task cut into single inputs; none where it cannot be cut further."""
        fields = task.fields
        if fields["stage"] == "checks" or fields["end"] - fields["begin"] == 1:
            return []
        return [
            _task(fields["victim"], fields["stage"], i, i + 1, task.needs, task.steps)
            for i in range(fields["begin"], fields["end"])
        ]

    def needed(self, task: Task, parts: Mapping[str, Part]) -> dict[str, Part]:
        """The parts that a task reads, cut to its inputs."""
        begin, end = task.fields["begin"], task.fields["end"]
        result: dict[str, Part] = {}
        for key in task.needs:
            part = parts[key]
            first, last = map(int, key.rpartition("/")[2].split("-"))
            if (first, last) != (begin, end):
                rows = slice(begin - first, end - first)
                part = {**part, "attacks": [_cut(one, rows) for one in part["attacks"]]}
            result[key] = part
        return result

    def joined(self, task: Task, parts: Sequence[Part]) -> Part:
        """The part of a task from those of its single inputs."""
        stage = task.fields["stage"]
        if stage == "effects":
            return {"damage": [value for part in parts for value in part["damage"]]}
        left_out = [entry for part in parts for entry in part["left_out"]]
        if stage == "measures":
            lists = ("rows", "notes")
            union: Part = {key: [x for part in parts for x in part[key]] for key in lists}
            return {**union, "left_out": left_out}
        by_id: dict[str, list[Any]] = {}
        for part in parts:
            for one in part["attacks"]:
                by_id.setdefault(one["id"], []).append(one)
        complete = [ones for ones in by_id.values() if len(ones) == len(parts)]
        attacks = [_stacked(ones) for ones in complete]
        return {"attacks": attacks, "first": parts[0]["first"], "left_out": left_out}

    def blank(self, task: Task, parts: Mapping[str, Part], reason: str) -> Part | None:
        """The part of a task that cannot be computed: no numbers, and the reason.

        None where the audit cannot do without it.
        """
        name, stage = task.fields["victim"], task.fields["stage"]
        places = range(task.fields["begin"], task.fields["end"])
        auditor = self.auditor
        numbers = [auditor.inputs.numbers[place] for place in places]
        words = f"input {numbers[0]}: {reason}" if len(numbers) == 1 else reason
        left_out = [omission(stage, name, words)]
        x = auditor.inputs.read(places).to(auditor.named[name].vae.dtype)
        if stage == "checks":
            return {"probes": {}, "random": False, "left_out": left_out}
        if stage == "measures":
            (attacks,) = parts.values()
            attacked = auditor.outcomes(x, attacks)
            empty: dict[str, dict[str, list[Any]]] = {one.id: {} for one in attacked}
            rows = auditor.rows(name, numbers, attacked, empty, {})
            return {"rows": rows, "notes": [], "left_out": left_out}
        if stage == "attacks":
            outcome = packed_result(nothing_found(x))
            jobs = auditor.jobs(name)
            facts = [{**auditor.facts_of(name, job), **outcome} for job in jobs]
            return {"attacks": facts, "first": None, "left_out": left_out}
        return None

    def bundle(self) -> Bundle:
        """All that another process needs.

        Raises:
            UnsupportedError: A model or defense that cannot be made again elsewhere.
        """
        auditor, inputs = self.auditor, self.auditor.inputs
        files: dict[str, bytes] = {}
        models: list[dict[str, Any]] = []
        places: dict[int, int] = {}
        victims: dict[str, Any] = {}
        for name, victim in auditor.named.items():
            if victim.classifier is not None:
                raise UnsupportedError(
                    f"victim {name!r} has a classifier, which workers cannot be given: "
                    "use the executor serial"
                )
            if id(victim.vae) not in places:
                places[id(victim.vae)] = len(models)
                models.append(self._model(victim, len(models), files))
            victims[name] = {
                "model": places[id(victim.vae)],
                "defense": registry.spec_of("defense", victim.defense),
                "device": str(victim.vae.device),
            }
        everything = inputs.read(range(len(inputs.numbers)))
        files[_INPUTS] = _array_bytes(everything)
        files[_UNSEEN] = _array_bytes(inputs.unseen)
        files[_CONSTANT] = _array_bytes(inputs.constant)
        files[_LABELS] = _array_bytes(inputs.y)
        spec = {
            "models": models,
            "victims": victims,
            "numbers": list(inputs.numbers),
            "plan": auditor.plan.model_dump(mode="json"),
            "question": auditor.question.model_dump(mode="json"),
            "seed": auditor.seed,
            "key": self.key,
            "clock": auditor.clock.facts(),
        }
        spec["modules"] = _modules([spec["victims"], spec["plan"]])
        files[_SPEC] = json.dumps(spec).encode()
        return Bundle("robustvae.audit.job:open_bundle", files)

    def _model(self, victim: Victim, number: int, files: dict[str, bytes]) -> dict[str, Any]:
        """How a model is made again, with its files."""
        vae = victim.vae
        digest = checkpoint.weights_sha256(vae)
        module = type(vae).__module__
        if saved_name(vae) is not None and module != "__main__":
            for name, content in checkpoint.contents(vae).items():
                files[f"model-{number}/{name}"] = content
            return {"folder": f"model-{number}", "sha256": digest, "module": module}
        if self.source is None:
            raise UnsupportedError(
                "workers load the model themselves, and this one is none of the library's: say "
                "how with Run(source='FILE.py:FACTORY'), or use the executor serial"
            )
        entry: dict[str, Any] = {"source": self.source, "sha256": digest}
        weights, examples = self.loading.get("weights"), self.loading.get("fit_on")
        if weights is not None and Path(weights).is_file():
            entry["weights"] = f"weights-{number}{Path(weights).suffix}"
            files[entry["weights"]] = Path(weights).read_bytes()
        if examples is not None:
            entry["fit_on"] = f"fit-{number}.npy"
            files[entry["fit_on"]] = _array_bytes(examples)
        if self.loading.get("pixels") is not None:
            entry["pixels"] = self.loading["pixels"]
        return entry


def _loaded(entry: Mapping[str, Any], folder: Path) -> VAE:
    """The model of an entry that `AuditJob.bundle` wrote."""
    from robustvae import zoo

    place = entry.get("folder")
    if place is not None:  # a member that a module registers when it is imported
        importlib.import_module(entry["module"])
        return checkpoint.load(folder / place)
    options: dict[str, Any] = {}
    if "weights" in entry:
        options["weights"] = folder / entry["weights"]
    if "fit_on" in entry:
        options["fit_on"] = torch.from_numpy(np.load(folder / entry["fit_on"], allow_pickle=False))
    if "pixels" in entry:
        pixels = entry["pixels"]
        options["pixels"] = tuple(pixels) if isinstance(pixels, list) else pixels
    return zoo.load(entry["source"], **options)


def _modules(specs: list[Any]) -> list[str]:
    """The modules that workers import for the members that these specs name.

    Raises:
        UnsupportedError: A member that the script itself registers, which no worker can import.
    """
    modules = registry.modules_of(specs)
    if "__main__" in modules:
        raise UnsupportedError(
            "workers cannot import what this script registers: put goals, defenses and other "
            "members into a module beside it and import that, or use the executor serial"
        )
    return sorted(modules)


@final
@dataclass(frozen=True)
class StageParts:
    """The parts of an audit by victim and stage.

    Args:
        tasks: Of the audit, in their order.
        parts: By the key of the task.
    """

    tasks: Sequence[Task]
    parts: Mapping[str, Part]

    def of(self, name: str, stage: str) -> list[Part]:
        """Those of one victim and stage, in the order of the inputs."""
        key = (name, stage)
        return [
            self.parts[task.key]
            for task in self.tasks
            if (task.fields["victim"], task.fields["stage"]) == key
        ]


def open_bundle(folder: Path) -> AuditJob:
    """The job that a bundle holds.

    Raises:
        RobustVAEError: A model that cannot be made here, or has other weights.
    """
    spec = json.loads((folder / _SPEC).read_text(encoding="utf-8"))
    for module in spec["modules"]:  # whose decorators register what the plan names
        importlib.import_module(module)
    models = []
    for entry in spec["models"]:
        vae = _loaded(entry, folder)
        if entry["sha256"] is not None and checkpoint.weights_sha256(vae) != entry["sha256"]:
            raise ConfigError(f"{entry.get('source')} has other weights in a worker: keep its file")
        models.append(vae)
    names = {}
    for name, entry in spec["victims"].items():
        vae = models[entry["model"]].to(entry["device"])
        names[name] = Victim(vae, registry.build("defense", entry["defense"]))
    inputs = Inputs(
        x=Mapped(np.load(folder / _INPUTS, mmap_mode="r", allow_pickle=False)),
        y=torch.from_numpy(np.load(folder / _LABELS, allow_pickle=False)),
        numbers=tuple(spec["numbers"]),
        unseen=torch.from_numpy(np.load(folder / _UNSEEN, allow_pickle=False)),
        constant=torch.from_numpy(np.load(folder / _CONSTANT, allow_pickle=False)),
    )
    question = QuestionFacts.model_validate(spec["question"])
    plan = Plan.model_validate(spec["plan"])
    job = AuditJob(Auditor(names, inputs, plan, question, spec["seed"]), {})
    if spec["clock"] is not None:
        job.auditor.clock = Clock.restored(names, inputs.read([0]), plan, spec["clock"])
    job.key = spec["key"]
    return job


@final
@dataclass(frozen=True, eq=False)
class Mapped:
    """Inputs in a file, of which only what is asked for is read.

    The file is opened once, so that it may be removed while it is in use.
    """

    array: np.ndarray

    def read(self, rows: Tensor) -> Tensor:
        """Some of them, (n, ...)."""
        return torch.from_numpy(np.array(self.array[rows.numpy()]))


def _task(
    victim: str, stage: str, begin: int, end: int, needs: tuple[str, ...], steps: int
) -> Task:
    fields = {"victim": victim, "stage": stage, "begin": begin, "end": end}
    return Task(f"{victim}/{stage}/{begin}-{end}", fields, needs, steps)


def _cut(outcome: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """An attack's outcome on some of its inputs."""
    return {
        key: packed(unpacked(value)[rows])
        if isinstance(value, Mapping)
        else (value[rows] if isinstance(value, list) else value)
        for key, value in outcome.items()
    }


def _stacked(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The outcomes of one attack on several inputs as one."""
    result = dict(outcomes[0])
    for key, value in outcomes[0].items():
        values = [outcome[key] for outcome in outcomes]
        if isinstance(value, Mapping):
            result[key] = packed(torch.cat([unpacked(one) for one in values]))
        elif isinstance(value, list):
            result[key] = [entry for one in values for entry in one]
    return result


def _array_bytes(x: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x.detach().cpu().contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()
