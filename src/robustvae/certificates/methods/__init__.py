"""Methods of certification, one file a family."""

from robustvae.certificates.methods.base import Finding, Method, Task
from robustvae.certificates.methods.table import METHODS

__all__ = ["METHODS", "Finding", "Method", "Task"]
