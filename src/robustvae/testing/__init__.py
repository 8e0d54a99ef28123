"""Contract tests: what every member of a family promises, as functions that plug-ins can call.

Each `check_...` takes a made member and the evidence that only its author can give, such as the
optimum that a goal must reach, and raises `ContractError` with one sentence where it is broken.
"""

from robustvae.testing.audits import audit_context, check_check, check_measure
from robustvae.testing.contracts import ContractError, members_of
from robustvae.testing.data import check_source
from robustvae.testing.defenses import check_defense
from robustvae.testing.goals import check_goal
from robustvae.testing.methods import check_method, exact_margin, orthogonal_vae
from robustvae.testing.models import check_model
from robustvae.testing.objectives import check_objective
from robustvae.testing.planted import linear_vae, tiny_vae
from robustvae.testing.searches import check_search
from robustvae.testing.soundness import Trials, judge, trials
from robustvae.testing.uses import check_logger, check_refinement, check_score, check_suite

__all__ = [
    "audit_context",
    "check_check",
    "check_defense",
    "check_goal",
    "check_logger",
    "check_measure",
    "check_method",
    "check_model",
    "check_objective",
    "check_refinement",
    "check_score",
    "check_search",
    "check_source",
    "check_suite",
    "ContractError",
    "exact_margin",
    "judge",
    "linear_vae",
    "members_of",
    "orthogonal_vae",
    "tiny_vae",
    "Trials",
    "trials",
]
