"""Training: `fit`, its log, and recipes that say everything a training run needs."""

from robustvae.training.adam import TangentAdam, optimizer_of
from robustvae.training.choices import Choice, advise
from robustvae.training.log import TrainingLog
from robustvae.training.loop import fit
from robustvae.training.recipe import Recipe, recipe_names, train_recipe

__all__ = [
    "Choice",
    "Recipe",
    "TangentAdam",
    "TrainingLog",
    "advise",
    "fit",
    "optimizer_of",
    "recipe_names",
    "train_recipe",
]
