"""Maximise any score over a ball: pure searches that know no model."""

from robustvae.perturb.ascent import ProjectedAscent, Score, SearchResult, ascent
from robustvae.perturb.ball import Ball

__all__ = ["Ball", "ProjectedAscent", "Score", "SearchResult", "ascent"]
