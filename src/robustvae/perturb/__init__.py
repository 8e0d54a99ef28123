"""Maximize any score over a ball: pure searches that know no model."""

from robustvae.perturb.ascent import ProjectedAscent, Score, SearchResult, ascend
from robustvae.perturb.ball import Ball
from robustvae.perturb.differences import CentralDifferences
from robustvae.perturb.explored import ExploredAscent
from robustvae.perturb.gradient_free import RandomSearch, SquareSearch, outward
from robustvae.perturb.lbfgs import LBFGS, Minimum, minimize
from robustvae.perturb.masked import Masked
from robustvae.perturb.one_shot import OneShot
from robustvae.perturb.universal import Universal

__all__ = [
    "Universal",
    "LBFGS",
    "Masked",
    "Ball",
    "CentralDifferences",
    "ExploredAscent",
    "Minimum",
    "OneShot",
    "ProjectedAscent",
    "RandomSearch",
    "Score",
    "SearchResult",
    "SquareSearch",
    "ascend",
    "minimize",
    "outward",
]
