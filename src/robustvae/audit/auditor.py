"""Measures victims on some inputs, stage by stage, and puts the record together."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from robustvae import registry
from robustvae.attacks import Attack
from robustvae.attacks.attack import AttackResult, nothing_found, put_rows
from robustvae.audit import pictures, statements
from robustvae.audit.attacking import Job, beginning, everyone, go_on, jobs, rows_of
from robustvae.audit.budget import Clock
from robustvae.audit.context import (
    BASE_COLUMNS,
    Attacked,
    Context,
    is_defended,
    is_random,
    undefended,
)
from robustvae.audit.outcomes import (
    Parts,
    checked_columns,
    omission,
    spec_or_none,
)
from robustvae.audit.plan import Plan, text
from robustvae.audit.probes import gradient_lies, probe, three_numbers
from robustvae.audit.protocol import (
    Inputs,
    rank,
)
from robustvae.audit.requirements import check_names, columns_of, measure_names
from robustvae.audit.store import (
    adversarials_bytes,
    packed_result,
    tensor_sha256,
    unpacked_result,
)
from robustvae.audit.summary import summarize, worst
from robustvae.audit.tasks import Memory, Part, State, Words
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, UnsupportedError
from robustvae.loops import packed, unpacked
from robustvae.records import (
    Column,
    ModelFacts,
    QuestionFacts,
    Record,
    VictimFacts,
    pieces,
    plain,
    reason_of,
    saving,
)
from robustvae.records.audit import row_sha256
from robustvae.records.judging import Case
from robustvae.records.parts import Omission
from robustvae.records.verdict import run_check, verdict_of


@final
class Auditor:
    """Measures victims on some inputs, stage by stage, and puts the record together."""

    def __init__(
        self,
        named: dict[str, Victim],
        inputs: Inputs,
        plan: Plan,
        question: QuestionFacts,
        seed: int,
    ) -> None:
        self.named, self.inputs, self.plan = named, inputs, plan
        self.question, self.seed, self.clock = question, seed, Clock()
        specs = {spec["name"]: spec for spec in plan.measures}
        self.measures = [
            (name, registry.build("measure", specs.get(name, name))) for name in measure_names(plan)
        ]
        self.columns: list[Column] = [*BASE_COLUMNS, *columns_of(plan)]
        twice = {c.id for c in self.columns if [d.id for d in self.columns].count(c.id) > 1}
        if twice:
            raise ConfigError(f"two measures have a column {sorted(twice)[0]!r}: rename one")
        self.lies: dict[str, bool] = {}
        self.common_results: dict[Any, Any] = {}
        numbers = inputs.numbers
        # the next greater number, so that the partner does not depend on the order of the inputs
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        self.after = {numbers[i]: j for i, j in zip(order, [*order[1:], order[0]], strict=True)}

    def context(self, name: str, places: Sequence[int]) -> Context:
        """The inputs at some places, for one victim."""
        victim, inputs = self.named[name], self.inputs
        x = inputs.read(places).to(device=victim.vae.device, dtype=victim.vae.dtype)
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
        context.cache.update({"partners": self.partners, "of models": self.common_results})
        return context

    def partners(self, context: Context) -> tuple[Tensor, Tensor]:
        """For every input the next one of the audit, and the victim's output for it."""
        numbers = self.inputs.numbers
        places = [self.after[number] for number in context.numbers]
        x = self.inputs.read(places).to(context.x)
        # each row by its own number: what it is does not depend on whose partner it is
        wider = dataclasses.replace(context, x=x, numbers=tuple(numbers[i] for i in places))
        return x, wider.read(context.victim, x, "output")

    def jobs(self, name: str, lies: bool = False) -> list[Job]:
        """Every attack of the plan, and those that the library adds to any plan."""
        victim, none = self.named[name], self.inputs.constant[:0]
        facts = (self.question, self.plan, self.seed, False, none)
        return jobs(self.plan, Context(victim, name, undefended(victim), none, (), *facts), lies)

    def attacked(self, name: str, places: Sequence[int], state: State, say: Words) -> Part:
        """The stage of attacks: each attack's outcome on the inputs at some places."""
        context = self.context(name, places)
        self.clock.start_part(name, len(places), "attacks")
        outcomes: list[Any] = []
        first = None
        if places[0] == 0:  # before anything attacks it: compared again by the checks
            with contextlib.suppress(Exception):  # whatever fails here fails below, and is noted
                first = state.get("first output") or packed(context.output)
                state.put("first output", first)
        for job in self.jobs(name, self.gradient_lies(name)):
            label = self.facts_of(name, job)["id"]
            say(f"attack {label}")
            outcome = state.get(label)
            if outcome is None:
                done = [one["attack"] for one in outcomes if one["attack"] is not None]
                begin = beginning(job, self.plan.attacks.index(job[1]), done, context.x)
                with saving(state, label):
                    outcome = self._outcome(context, job, label, begin)
                state.put(label, outcome)
            outcomes.append(outcome)
        return {
            "attacks": [outcome["attack"] for outcome in outcomes if outcome["attack"] is not None],
            "first": first,
            "left_out": [entry for outcome in outcomes for entry in outcome["left_out"]],
        }

    def _outcome(
        self, context: Context, job: Job, label: str, begin: Tensor | None
    ) -> dict[str, Any]:
        """One attack's outcome, which holds for the inputs that it could be run on.

        A longer run goes on from `begin`, where the shorter one ended.
        """
        role, _, attack, target = job
        left_out: list[dict[str, str]] = []
        result = nothing_found(context.x)

        def note(reason: str) -> None:
            left_out.append(omission(f"attack {label}", context.name, reason))

        def run(rows: Sequence[int]) -> AttackResult:
            local = context if len(rows) == len(context.x) else context.part(rows)
            local_attack = attack if begin is None else go_on(attack, begin[list(rows)])
            return self.attack(local, local_attack, target, role)

        try:
            with self.clock.attack((context.name, label), attack, len(context.x), note) as attack:
                for rows, part in pieces(len(context.x), run, note):
                    if isinstance(part, BaseException):
                        note(f"input {context.numbers[rows[0]]}: {reason_of(part)}")
                    else:
                        is_complete = len(rows) == len(context.x)
                        result = part if is_complete else put_rows(result, rows, part)
        except UnsupportedError as error:  # this victim cannot be put to it: no row
            note(reason_of(error))
            return {"attack": None, "left_out": left_out}
        except Exception as error:  # a stranger's model may raise anything: the rest goes on
            note(reason_of(error))
        facts = self.facts_of(context.name, job)
        return {"attack": {**facts, **packed_result(result)}, "left_out": left_out}

    def facts_of(self, name: str, job: Job) -> dict[str, Any]:
        """What a part says of an attack beside its outcome."""
        role, attack, *_ = job
        return {
            "place": self.plan.attacks.index(attack),
            "id": attack.id if role == "plan" else f"{attack.id} ({role})",
            "role": role,
            "knows": statements.knows(role, is_defended(self.named[name])),
        }

    def outcomes(self, x: Tensor, part: Part) -> tuple[Attacked, ...]:
        """The attacks that a part of the stage of attacks holds."""
        return tuple(
            Attacked(
                self.plan.attacks[one["place"]],
                one["id"],
                one["role"],
                one["knows"],
                unpacked_result(one, x),
            )
            for one in part["attacks"]
        )

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
                self.common_results[key] = attack.run(target, whole.x, generator=streams)
            result = rows_of(self.common_results[key], whole.numbers, context.numbers)
        else:
            result = attack.run(target, context.x, generator=context.streams(purpose))
        if target is context.victim:
            return result
        score = attack.score(
            context.victim, context.x, result.x_adv, generator=context.streams("transferred")
        )
        return dataclasses.replace(result, score=score)

    def measured_rows(
        self, name: str, places: Sequence[int], attacks: Part, state: State, say: Words
    ) -> Part:
        """The stage of measures: rows of one victim on the inputs at some places."""
        left_out: list[dict[str, str]] = []

        def note(stage: str, reason: str) -> None:
            left_out.append(omission(stage, name, reason))

        context = self.context(name, places)
        self.clock.start_part(name, len(places), "measures")
        attacked = self.outcomes(context.x, attacks)
        context = dataclasses.replace(context, attacks=attacked)
        values, common = self.measured(context, note, say, state)
        rows = self.rows(name, context.numbers, attacked, values, common)
        notes = context.cache.get("rests on", {})
        part: Part = plain(
            {
                "rows": rows,
                "notes": [[*key, lists] for key, lists in notes.items()],
                "left_out": left_out,
            }
        )
        return part

    def measured(
        self,
        context: Context,
        note: Callable[[str, str], None],
        say: Words = lambda words: None,
        state: State | None = None,
    ) -> tuple[dict[str, dict[str, list[Any]]], dict[str, list[Any]]]:
        """Columns of every measure: of attacks by the attack's id, and of the inputs."""
        values: dict[str, dict[str, list[Any]]] = {one.id: {} for one in context.attacks}
        common: dict[str, list[Any]] = {}
        state = Memory() if state is None else state
        for name, measure in self.clock.ordered(self.measures):
            say(name)
            content = state.get(name)
            if content is None:
                content = self._measure(context, name, measure)
                state.put(name, content)
            for reason in content["left_out"]:
                note(name, reason)
            notes = context.once("rests on", dict) if content["notes"] else {}
            for kind, holding, lists in content["notes"]:
                notes.setdefault((kind, holding), []).extend(lists)
            common |= content["inputs"]
            for key, columns in content["attacks"].items():
                values[key] |= columns
        return values, common

    def _measure(self, context: Context, name: str, measure: Any) -> dict[str, Any]:
        """One measure's columns, in JSON's own types; None for inputs where it fails."""
        reasons: list[str] = []
        notes: list[Any] = []

        def run(about: Context) -> dict[str, list[Any]]:
            def compute(rows: Sequence[int]) -> Any:
                local = about if len(rows) == len(about.x) else about.part(rows)
                local.cache["rests on"] = {}
                columns = checked_columns(measure, measure(local), len(rows))
                return columns, local.cache.pop("rests on")

            columns: dict[str, list[Any]] = {c.id: [None] * len(about.x) for c in measure.columns}
            guard = self.clock.paced(name, len(about.x), compute)
            for rows, part in pieces(len(about.x), guard, reasons.append):
                if isinstance(part, BaseException):
                    reasons.append(f"input {about.numbers[rows[0]]}: {reason_of(part)}")
                    continue
                notes.extend([*key, lists] for key, lists in part[1].items())
                for key, column in part[0].items():
                    for row, value in zip(rows, column, strict=True):
                        columns[key][row] = value
            return columns

        attacks: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        try:
            with self.clock.stage(name):
                if measure.columns[0].per == "input":
                    inputs = run(context)
                else:
                    for one in context.attacks:
                        attacks[one.id] = run(context.about(one))
        except Exception as error:  # a stranger's model may raise anything: the rest goes on
            reasons.append(reason_of(error))
        content: dict[str, Any] = plain(
            {"attacks": attacks, "inputs": inputs, "notes": notes, "left_out": reasons}
        )
        return content

    def rows(
        self,
        name: str,
        numbers: Sequence[int],
        attacked: Sequence[Attacked],
        values: dict[str, dict[str, list[Any]]],
        shared: dict[str, list[Any]],
    ) -> list[dict[str, Any]]:
        """One flat dict for each input and attack; what was not measured is None."""
        empty = dict.fromkeys(column.id for column in self.columns)
        labels = dict(zip(self.inputs.numbers, self.inputs.y.tolist(), strict=True))
        rows = []
        for i, number in enumerate(numbers):
            for one in attacked:
                result = one.result
                rows.append(
                    {
                        **empty,
                        "victim": name,
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
            left_out.append(Omission(**omission("pictures", name, reason_of(error))))
            return []

    def probes(self, name: str, attacks: Part) -> Part:
        """The stage of checks: what they judge beside the rows, on the first inputs."""
        left_out: list[dict[str, str]] = []

        def note(stage: str, error: Exception) -> None:
            left_out.append(omission(stage, name, f"{type(error).__name__}: {error}"))

        victim, probes = self.named[name], {}
        if self.plan.probes:
            context = self.context(
                name, range(min(self.plan.probes, self.plan.shard, self.plan.inputs))
            )
            attacked = []
            for one in attacks["attacks"]:
                if one["role"] == "plan":
                    x_adv = unpacked(one["x_adv"])[: len(context.x)].to(context.x)
                    result = dataclasses.replace(nothing_found(context.x), x_adv=x_adv)
                    plan = self.plan.attacks[one["place"]]
                    attacked.append(Attacked(plan, one["id"], "plan", "", result))
            context = dataclasses.replace(context, attacks=tuple(attacked))
            if attacks["first"] is not None:
                context.cache["first output"] = unpacked(attacks["first"])
            probes = plain(probe(context, self.inputs.unseen, note, self.clock))
        first = self.inputs.read([0]).to(device=victim.vae.device, dtype=victim.vae.dtype)
        return {"probes": probes, "random": is_random(victim, first), "left_out": left_out}

    def undefended_damage(self, name: str, places: Sequence[int]) -> Part:
        """The stage of effects: damage of the undefended model by the plan's first attack."""
        victim = undefended(self.named[name])
        attack = self.plan.attacks[0].build()
        context = self.context(name, places)
        result = attack.run(victim, context.x, generator=context.generator("undefended"))
        output = victim.reconstruct(result.x_adv, generator=context.generator("output"))
        return {"damage": (output - context.plain_output).flatten(1).norm(dim=1).tolist()}

    def record(
        self,
        header: dict[str, Any],
        images: Images,
        fixed: Any,
        parts: Parts,
        left_out: list[Omission],
        clock: tuple[float, datetime.datetime],
    ) -> Record:
        """What follows from the parts of all victims and inputs."""
        rows: list[dict[str, Any]] = []
        facts: list[VictimFacts] = []
        gallery: list[dict[str, Any]] = []
        notes: dict[tuple[str, bool], list[list[str]]] = {}
        tensors = {"x": self.inputs.read(range(len(self.inputs.numbers)))}
        tensors["constant"] = self.inputs.constant
        effects: dict[str, float] = {}
        for place, name in enumerate(self.named):
            attacks, shards = parts.of(name, "attacks"), parts.of(name, "measures")
            local = [row for shard in shards for row in shard["rows"]]
            rows += local
            for shard in shards:
                if place == 0:
                    for kind, holding, lists in shard["notes"]:
                        notes.setdefault((kind, holding), []).extend(lists)
            for part in (*attacks, *shards, *parts.of(name, "checks")):
                left_out += [Omission(**entry) for entry in part["left_out"]]
            packs: dict[str, list[Tensor]] = {}
            for part in attacks:
                for one in part["attacks"]:
                    packs.setdefault(one["id"], []).append(unpacked(one["x_adv"]))
            # an attack that some inputs could not be put to has no file of all of them
            complete = {key: pack for key, pack in packs.items() if len(pack) == len(attacks)}
            tensors |= {f"{name}/{key}": torch.cat(pack) for key, pack in complete.items()}
            if place == 0:
                gallery = self.gallery(name, local, tensors, left_out)
            facts.append(self._facts(name, local, parts, effects))
        left_out = list(dict.fromkeys(left_out))
        first = [row for row in rows if row["victim"] == facts[0].name]
        inputs = list({row["input"]: row for row in first}.values())
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
                "created": clock[1].strftime("%Y-%m-%dT%H:%M:%SZ"),
                "seconds": round(time.monotonic() - clock[0], 1),
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

    def _facts(
        self,
        name: str,
        rows: list[dict[str, Any]],
        parts: Parts,
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
            damages = [value for part in parts.of(name, "effects") for value in part["damage"]]
            if damages:
                effects[key] = sum(damages) / len(damages)
        (checks,) = parts.of(name, "checks")
        probes = dict(checks["probes"])
        if has_defense and effect is not None and price is not None:
            probes["three"] = three_numbers(effect, price, effects.get(key))
        return VictimFacts(
            name=name,
            defense=repr(victim.defense),
            spec=spec_or_none(victim),
            random=checks["random"],
            defended=has_defense,
            effect=effect,
            price=price,
            distance=mean("error_attacked", inside),
            probes=probes,
        )

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
