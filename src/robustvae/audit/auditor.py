"""Measures all victims on all inputs, shard by shard, and puts the record together."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from robustvae import registry
from robustvae.attacks import Attack
from robustvae.attacks.attack import AttackResult
from robustvae.audit import pictures, statements
from robustvae.audit.attacking import everyone, jobs, rows_of
from robustvae.audit.context import (
    BASE_COLUMNS,
    Attacked,
    Context,
    is_defended,
    is_random,
    nothing_found,
    undefended,
)
from robustvae.audit.plan import Plan, text
from robustvae.audit.probes import gradient_lies, probe, three_numbers
from robustvae.audit.progress import Lines, Progress
from robustvae.audit.protocol import (
    Inputs,
    rank,
)
from robustvae.audit.requirements import check_names, columns_of, measure_names
from robustvae.audit.store import Store, adversarials_bytes, packed, tensor_sha256, unpacked
from robustvae.audit.summary import summarize, worst
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, RobustVAEError, UnsupportedError
from robustvae.records import (
    Column,
    ModelFacts,
    QuestionFacts,
    Record,
    VictimFacts,
    plain,
)
from robustvae.records.audit import row_sha256
from robustvae.records.judging import Case
from robustvae.records.parts import Omission
from robustvae.records.verdict import run_check, verdict_of


@final
@dataclass(frozen=True)
class Run:
    """How an audit is run, which decides no number of it.

    Args:
        name: What to call the model in the record.
        source: What `rv.load` takes to load it again, for whoever verifies the record.
        keep: A folder for finished shards, so that nothing is lost when the run is stopped.
        resume: Take shards of the same audit from `keep` instead of computing them again; the
            same means the same weights, inputs, plan and seed.
        progress: Called with (steps done, steps in all, what is under way); None prints a line
            with the remaining time now and then, once an audit takes long.

    Examples:
        >>> from robustvae.audit import Run
        >>> Run(name="mine").resume
        False
    """

    name: str | None = None
    source: str | None = None
    keep: str | Path | None = None
    resume: bool = False
    progress: Progress | None = None


@final
class Auditor:
    """Measures all victims on all inputs, shard by shard, and puts the record together."""

    def __init__(
        self,
        named: dict[str, Victim],
        inputs: Inputs,
        plan: Plan,
        question: QuestionFacts,
        seed: int,
        run: Run,
    ) -> None:
        self.named, self.inputs, self.plan = named, inputs, plan
        self.question, self.seed, self.run = question, seed, run
        specs = {spec["name"]: spec for spec in plan.measures}
        self.measures = [
            (name, registry.build("measure", specs.get(name, name))) for name in measure_names(plan)
        ]
        self.columns: list[Column] = [*BASE_COLUMNS, *columns_of(plan)]
        twice = {c.id for c in self.columns if [d.id for d in self.columns].count(c.id) > 1}
        if twice:
            raise ConfigError(f"two measures have a column {sorted(twice)[0]!r}: rename one")
        self.stages = 1 + len(self.measures)
        self.shards = -(-plan.inputs // plan.shard)
        self.total = len(named) * self.shards * self.stages + len(named) + 1
        self.done = 0
        self.lies: dict[str, bool] = {}
        self.first_outputs: dict[str, Tensor] = {}
        self.common_results: dict[Any, AttackResult] = {}
        self.tell = run.progress or Lines()

    def step(self, words: str) -> None:
        """Tell that a step begins."""
        self.tell(self.done, self.total, words)
        self.done += 1

    def context(self, name: str, places: Sequence[int]) -> Context:
        """The inputs at some places, for one victim."""
        victim, inputs = self.named[name], self.inputs
        x = inputs.x[list(places)].to(device=victim.vae.device, dtype=victim.vae.dtype)
        context = Context(
            victim=victim,
            name=name,
            plain=undefended(victim),
            x=x,
            numbers=tuple(inputs.numbers[place] for place in places),
            question=self.question,
            plan=self.plan,
            seed=self.seed,
            random=is_random(victim, x),
            constant=inputs.constant.to(x),
        )
        context.cache["partners"] = self.partners(context)
        return context

    def partners(self, context: Context) -> Any:
        """For every input the next one of the audit, and how to get the victim's output for it."""
        numbers = self.inputs.numbers
        # the next greater number, so that the partner does not depend on the order of the inputs
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        rows = {numbers[i]: j for i, j in zip(order, [*order[1:], order[0]], strict=True)}
        everything = self.inputs.x.to(context.x)

        def outputs() -> Tensor:
            # computed for the whole audit in one go, the same whatever the shards are
            wider = dataclasses.replace(context, x=everything, numbers=numbers)
            result: Tensor = context.once(
                ("all outputs", context.name),
                lambda: wider.read(context.victim, everything, "output"),
            )
            return result

        return {"x": everything, "rows": rows}, outputs

    def attacks(self, context: Context, note: Callable[[str, Exception], None]) -> list[Attacked]:
        """Every attack of the plan, and those that the library adds to any plan."""
        results = []
        lies = self.gradient_lies(context.name)
        for role, attack_plan, attack, target in jobs(self.plan, context, lies):
            name = attack_plan.id if role == "plan" else f"{attack_plan.id} ({role})"
            try:
                result = self.attack(context, attack, target, role)
            except UnsupportedError as error:  # this victim cannot be put to it: no row
                note(f"attack {name}", error)
                continue
            except Exception as error:  # a stranger's model may raise anything: the rest goes on
                note(f"attack {name}", error)
                result = nothing_found(context.x)
            knows = statements.knows(role, context.defended)
            results.append(Attacked(attack_plan, name, role, knows, result))
        return results

    def gradient_lies(self, name: str) -> bool:
        """Whether a victim's gradient is not that of its function, seen at the first inputs.

        Seen once, and always on the same inputs, so that every shard is attacked alike.
        """
        if name not in self.lies:
            places = range(min(self.plan.probes, self.plan.inputs))
            self.lies[name] = bool(places) and gradient_lies(self.context(name, places))
        return self.lies[name]

    def attack(self, context: Context, attack: Attack, target: Victim, role: str) -> AttackResult:
        """One attack on the context's inputs; a transferred one is scored on the victim."""
        # a purpose without the shard: what an input draws follows from the input itself
        purpose = f"attack {role} {attack.ball.norm} {attack.ball.radius:g}"
        if getattr(attack.search, "shares_change", False):
            key = context.name, purpose, repr(attack), target is context.victim
            whole = everyone(context, self.inputs)
            if key not in self.common_results:
                streams = whole.streams(purpose)
                self.common_results[key] = attack(target, whole.x, generator=streams)
            result = rows_of(self.common_results[key], whole.numbers, context.numbers)
        else:
            result = attack(target, context.x, generator=context.streams(purpose))
        if target is context.victim:
            return result
        score = attack.score(
            context.victim, context.x, result.x_adv, generator=context.streams("transferred")
        )
        return dataclasses.replace(result, score=score)

    def shard(self, name: str, places: range, label: str) -> dict[str, Any]:
        """Rows and attacked inputs of one victim on some inputs."""
        left_out: list[dict[str, str]] = []

        def note(stage: str, error: Exception) -> None:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, RobustVAEError):
                reason = " ".join(str(error).split())
            left_out.append({"stage": stage, "victim": name, "reason": reason[:400]})

        context = self.context(name, places)
        if places.start == 0:  # before anything attacks it: compared again at the end
            with contextlib.suppress(Exception):  # whatever fails here fails below, and is noted
                self.first_outputs[name] = context.output.clone()
        self.step(f"{label}: attacks")
        attacked = self.attacks(context, note)
        context = dataclasses.replace(context, attacks=tuple(attacked))
        values, common = self.measured(context, note, lambda name: self.step(f"{label}: {name}"))
        rows = self.rows(context, attacked, values, common)
        notes = context.cache.get("rests on", {})
        shard: dict[str, Any] = plain(
            {
                "rows": rows,
                "notes": [[*key, lists] for key, lists in notes.items()],
                "left_out": left_out,
                "adversarials": {one.id: packed(one.x_adv) for one in attacked},
            }
        )
        return shard

    def measured(
        self,
        context: Context,
        note: Callable[[str, Exception], None],
        step: Callable[[str], None],
    ) -> tuple[dict[str, dict[str, list[Any]]], dict[str, list[Any]]]:
        """Columns of every measure: of attacks by the attack's id, and of the inputs."""
        values: dict[str, dict[str, list[Any]]] = {one.id: {} for one in context.attacks}
        common: dict[str, list[Any]] = {}
        for name, measure in self.measures:
            step(name)
            try:
                if measure.columns[0].per == "input":
                    common |= _columns(measure, measure(context), len(context.x))
                    continue
                for one in context.attacks:
                    part = measure(context.about(one))
                    values[one.id] |= _columns(measure, part, len(context.x))
            except Exception as error:  # a stranger's model may raise anything: the rest goes on
                note(name, error)
        return values, common

    def rows(
        self,
        context: Context,
        attacked: list[Attacked],
        values: dict[str, dict[str, list[Any]]],
        shared: dict[str, list[Any]],
    ) -> list[dict[str, Any]]:
        """One flat dict for each input and attack; what was not measured is None."""
        empty = dict.fromkeys(column.id for column in self.columns)
        labels = dict(zip(self.inputs.numbers, self.inputs.y.tolist(), strict=True))
        rows = []
        for i, number in enumerate(context.numbers):
            for one in attacked:
                result = one.result
                rows.append(
                    {
                        **empty,
                        "victim": context.name,
                        "input": number,
                        "label": labels[number],
                        "attack": one.id,
                        "role": one.role,
                        "knows": one.knows,
                        "goal": text(one.plan.goal),
                        "norm": one.plan.norm,
                        "radius": one.plan.radius,
                        "box": True,
                        "status": result.status[i],
                        "queries": int(result.queries[i]),
                        "score": float(result.score[i]),
                        "zero_gradients": float(result.zero_gradients[i]),
                        "adversarial": tensor_sha256(one.x_adv[i]),
                        **{key: column[i] for key, column in shared.items()},
                        **{key: column[i] for key, column in values[one.id].items()},
                    }
                )
        return [plain(row) for row in rows]

    def gallery(
        self,
        name: str,
        rows: list[dict[str, Any]],
        tensors: Mapping[str, Tensor],
        left_out: list[Omission],
    ) -> list[dict[str, Any]]:
        """Worst, median and best inputs under the worst attack in the first ball."""
        ball = self.plan.balls[0]
        inside = worst(row for row in rows if (row["norm"], row["radius"]) == ball)
        chosen = pictures.chosen(inside, self.plan.gallery)
        if not chosen:
            return []
        self.step(f"{name}: pictures")
        leader = next(attack for attack in self.plan.attacks if attack.ball == ball)
        try:
            items = []
            for _, row in chosen:
                place = self.inputs.numbers.index(row["input"])
                context = self.context(name, [place])
                x_adv = tensors[f"{name}/{row['attack']}"][place : place + 1].to(context.x)
                result = dataclasses.replace(nothing_found(context.x), x_adv=x_adv)
                attacked = Attacked(leader, row["attack"], row["role"], row["knows"], result)
                items.append(context.about(attacked))
            return pictures.gallery(items, chosen)
        except Exception as error:  # a stranger's model may raise anything: the rest goes on
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            left_out.append(Omission(stage="pictures", victim=name, reason=reason))
            return []

    def probes(self, name: str, left_out: list[Omission], shards: list[dict[str, Any]]) -> Any:
        """What the checks judge beside the rows, on the first inputs."""
        if not self.plan.probes:
            return {}
        context = self.context(
            name, range(min(self.plan.probes, self.plan.shard, self.plan.inputs))
        )
        arrays = shards[0]["adversarials"]
        attacked = []
        for attack in self.plan.attacks:
            if attack.id in arrays:
                x_adv = unpacked(arrays[attack.id])[: len(context.x)].to(context.x)
                empty = nothing_found(context.x)
                result = dataclasses.replace(empty, x_adv=x_adv)
                attacked.append(Attacked(attack, attack.id, "plan", "", result))
        context = dataclasses.replace(context, attacks=tuple(attacked))
        context.cache["first output"] = self.first_outputs.get(name)

        def note(stage: str, error: Exception) -> None:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            left_out.append(Omission(stage=stage, victim=name, reason=reason))

        return plain(probe(context, self.inputs.unseen, note))

    def record(
        self,
        header: dict[str, Any],
        images: Images,
        fixed: Any,
        left_out: list[Omission],
        clock: tuple[float, datetime.datetime],
    ) -> Record:
        """All victims on all inputs, and what follows from them."""
        store = Store(self.run.keep, header, self.run.resume)
        rows: list[dict[str, Any]] = []
        facts: list[VictimFacts] = []
        gallery: list[dict[str, Any]] = []
        notes: dict[tuple[str, bool], list[list[str]]] = {}
        tensors = {"x": self.inputs.x, "constant": self.inputs.constant}
        effects: dict[str, float] = {}
        for place, name in enumerate(self.named):
            shards = list(self._shards(name, place, store))
            local = [row for shard in shards for row in shard["rows"]]
            rows += local
            for shard in shards:
                left_out += [Omission(**entry) for entry in shard["left_out"]]
                if place == 0:
                    for kind, holding, lists in shard["notes"]:
                        notes.setdefault((kind, holding), []).extend(lists)
            for attack in shards[0]["adversarials"]:
                parts = [unpacked(shard["adversarials"][attack]) for shard in shards]
                tensors[f"{name}/{attack}"] = torch.cat(parts)
            if place == 0:
                gallery = self.gallery(name, local, tensors, left_out)
            self.step(f"{name}: checks on the evidence")
            facts.append(self._facts(name, local, shards, left_out, effects))
        left_out = list(dict.fromkeys(left_out))
        for fault in store.damaged:
            left_out.append(
                Omission(stage="resume", reason=f"{fault} was damaged and computed again")
            )
        first = [row for row in rows if row["victim"] == facts[0].name]
        inputs = list({row["input"]: row for row in first}.values())
        start_time, creation = clock
        clean = [float(row["error_clean"]) for row in inputs if row.get("error_clean") is not None]
        question = self.question
        if clean:
            question = question.model_copy(update={"clean_error": sum(clean) / len(clean)})
        model: ModelFacts = header["model"]
        draft = {
            "title": f"{model.name} on {images.name} ({images.split})",
            "model": model,
            "data": header["data"],
            "question": question,
            "victims": facts,
            "plan": header["plan"],
            "seed": self.seed,
            "environment": header["environment"],
            "protocol": statements.protocol(self.plan, question, facts),
            "columns": self.columns,
            "rows": rows,
            "hashes": [row_sha256(row) for row in rows],
            "summary": summarize(rows, self.columns, list(self.named)),
            "checks": self._checks(facts, rows),
            "verdict": {"sentences": ("Not judged yet.",)},
            "gallery": gallery,
            "proved": statements.proved(inputs, question, notes),
            "estimated": statements.estimated(self.plan, question),
            "not_tried": statements.not_tried(self.plan, question, facts),
            "left_out": left_out,
            "references": statements.REFERENCES,
            "timing": {
                "created": creation.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "seconds": round(time.monotonic() - start_time, 1),
            },
        }
        record = Record.model_validate(draft)
        verdict = verdict_of(record.rows, record.checks, record)
        if fixed is not None and not question.shortened and verdict.passed:
            score = next((e.mean for e in record.summary if e.key == fixed.ranked_by), None)
            place_, count = None, None
            if score is not None:
                place_, count = rank(fixed, float(score), model.name)
            if place_ is not None:
                first_words = verdict.sentences[0].removesuffix(".")
                words = f"{first_words}; rank {place_} of {count} in {fixed.name}."
                verdict = verdict.model_copy(
                    update={
                        "rank": place_,
                        "of": count,
                        "sentences": (words, *verdict.sentences[1:]),
                    }
                )
        record = record.model_copy(update={"verdict": verdict})
        return record.with_adversarials(adversarials_bytes(tensors))

    def _shards(self, name: str, place: int, store: Store) -> Iterator[dict[str, Any]]:
        for number in range(self.shards):
            key = place * self.shards + number
            shard = store.read(key)
            begin = number * self.plan.shard
            places = range(begin, min(begin + self.plan.shard, self.plan.inputs))
            if shard is None:
                words = f"{name}, inputs {begin + 1} to {places.stop} of {self.plan.inputs}"
                shard = self.shard(name, places, words)
                store.write(key, shard)
            else:
                self.done += self.stages
            yield shard

    def _facts(
        self,
        name: str,
        rows: list[dict[str, Any]],
        shards: list[dict[str, Any]],
        left_out: list[Omission],
        effects: dict[str, float],
    ) -> VictimFacts:
        """One victim's three numbers and probes."""
        victim = self.named[name]
        norm, radius = self.plan.balls[0]
        inside = worst(row for row in rows if (row["norm"], row["radius"]) == (norm, radius))
        inputs = {row["input"]: row for row in rows}.values()

        def mean(column: str, among: Any) -> float | None:
            values = [float(row[column]) for row in among if row.get(column) is not None]
            return sum(values) / len(values) if values else None

        effect, price = mean("damage", inside), mean("price", inputs)
        has_defense = is_defended(victim)
        key = str(id(victim.vae))
        if not has_defense and effect is not None:
            effects.setdefault(key, effect)
        elif effect is not None and key not in effects:
            effects[key] = self._undefended_effect(name)
        probes = self.probes(name, left_out, shards)
        if has_defense and effect is not None and price is not None:
            probes["three"] = three_numbers(effect, price, effects.get(key))
        return VictimFacts(
            name=name,
            defense=repr(victim.defense),
            spec=_spec_of(victim),
            random=is_random(victim, self.inputs.x[:1].to(victim.vae.dtype)),
            defended=has_defense,
            effect=effect,
            price=price,
            distance=mean("error_attacked", inside),
            probes=probes,
        )

    def _undefended_effect(self, name: str) -> float:
        """Mean damage of the undefended model by the plan's first attack, on all inputs."""
        victim = undefended(self.named[name])
        attack = self.plan.attacks[0].build()
        context = self.context(name, range(self.plan.inputs))
        result = attack(victim, context.x, generator=context.generator("undefended"))
        output = victim.reconstruct(result.x_adv, generator=context.generator("output"))
        return float((output - context.plain_output).flatten(1).norm(dim=1).mean())

    def _checks(self, facts: list[VictimFacts], rows: list[dict[str, Any]]) -> list[Any]:
        specs = {spec["name"]: spec for spec in self.plan.checks}
        return [
            run_check(
                name,
                Case(
                    victim=victim.name,
                    rows=[row for row in rows if row["victim"] == victim.name],
                    probes=victim.probes,
                    question=self.question.model_dump(),
                    defended=victim.defended,
                    random=victim.random,
                    settings=self.plan.model_dump(mode="json"),
                ),
                specs.get(name),
            )
            for victim in facts
            for name in check_names(self.plan)
        ]


def _columns(measure: Any, values: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """The values of a measure's columns, each a list of one for every input."""
    ids = {column.id for column in measure.columns}
    if set(values) != ids:
        odd = sorted(set(values) ^ ids)
        raise ConfigError(
            f"{type(measure).__name__} must return its declared columns, got {', '.join(odd)}"
        )
    columns: dict[str, list[Any]] = {}
    for key, column in values.items():
        listing = plain(list(column) if isinstance(column, tuple) else column)
        if len(listing) != count:
            raise ConfigError(
                f"{key} must hold one value for each of {count} inputs, got {len(listing)}"
            )
        columns[key] = listing
    return columns


def _spec_of(victim: Victim) -> dict[str, Any] | None:
    with contextlib.suppress(RobustVAEError):
        spec: dict[str, Any] = registry.spec_of("defense", victim.defense)
        return spec
    return None
