"""What training minimises, as values: an objective gives every image its loss."""

from robustvae.objectives.base import Objective
from robustvae.objectives.elbo import ELBO, elbo

__all__ = ["ELBO", "Objective", "elbo"]
