"""Where the numbers of audits and trainings go: one protocol of two methods, several trackers."""

from robustvae.loggers.base import Logger, log_record
from robustvae.loggers.jsonl import JSONLines
from robustvae.loggers.mlflow import MLflow
from robustvae.loggers.tensorboard import TensorBoard
from robustvae.loggers.wandb import WandB

__all__ = ["JSONLines", "log_record", "Logger", "MLflow", "TensorBoard", "WandB"]
