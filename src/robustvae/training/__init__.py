"""Training: `fit`, its log, and recipes that say everything a training run needs."""

from robustvae.training.adam import TangentAdam, optimizer_of
from robustvae.training.choices import Choice, advise
from robustvae.training.log import JsonLines, Logger
from robustvae.training.loop import fit
from robustvae.training.recipe import Recipe, recipe_names, train_recipe

__all__ = [
    "Choice",
    "JsonLines",
    "Logger",
    "Recipe",
    "TangentAdam",
    "advise",
    "fit",
    "optimizer_of",
    "recipe_names",
    "train_recipe",
]
