"""Names that a plan gives: of measures, of checks, of keys of the summary."""

from __future__ import annotations

from robustvae import registry
from robustvae.arguments import checked
from robustvae.audit.context import standard_measures
from robustvae.audit.plan import Plan
from robustvae.audit.summary import PREDICTORS
from robustvae.records import Column


def measure_names(plan: Plan) -> list[str]:
    """The measures that a plan asks for, the library's own first."""
    names = [*standard_measures(), *(spec["name"] for spec in plan.measures)]
    return [name for name in dict.fromkeys(names) if name not in plan.without]


@checked(formula=True)
def check_names(plan: Plan) -> list[str]:
    """Ids of the checks that a plan asks for, the library's own first."""
    names = [*STANDARD_CHECKS, *(spec["name"] for spec in plan.checks)]
    return [name for name in dict.fromkeys(names) if name not in plan.without]


def columns_of(plan: Plan) -> list[Column]:
    """The columns of every measure that a plan asks for."""
    specs = {spec["name"]: spec for spec in plan.measures}
    return [
        column
        for name in measure_names(plan)
        for column in registry.build("measure", specs.get(name, name)).columns
    ]


@checked(formula=True)
def summary_keys(plan: Plan) -> list[str]:
    """Every plain key that the summary may have; what could not be measured is not in a record.

    Keys of one attack, of another ball or of another victim end in " / " and its name.
    """
    keys = [column.id for column in columns_of(plan) if column.reduction != "none"]
    keys += ["tightness_deterministic", "tightness_probabilistic"]
    keys += [f"predicts / {key}" for key in PREDICTORS]
    attacks = [attack.id for attack in plan.attacks]
    balls = [f"{norm} {radius:g}" for norm, radius in plan.balls]
    of_attacks = [
        column.id
        for column in columns_of(plan)
        if column.per == "attack" and column.reduction != "none"
    ]
    return [*keys, *(f"{key} / {place}" for place in (*balls, *attacks) for key in of_attacks)]


STANDARD_CHECKS = (
    "samples_beat_constant",
    "input_matters",
    "exchange_exceeds_tolerance",
    "attacks_ran",
    "same_output_twice",
    "same_output_in_any_batch",
    "near_inputs_near_outputs",
    "finite_everywhere",
    "same_beside_inputs",
    "gradient_seen",
    "gradient_matches_function",
    "gradient_beats_gradient_free",
    "adaptive_at_least_transfer",
    "inside_ball",
    "score_recomputed",
    "beats_random_noise",
    "larger_radius_stronger",
    "unbounded_attack_succeeds",
    "certified_below_attacked",
    "band_certified_below_attacked",
    "robust_without_attack",
    "diagnosis_passed",
    "longer_search_same",
    "defense_worth_its_price",
    "clean_error_below_tolerance",
)
