"""Bounds on networks over balls: graphs of layers, one operator a kind of layer, and the sweep."""

from robustvae.certificates.propagation import operators as operators
from robustvae.certificates.propagation.bounds import METHODS, LinearBounds, Method
from robustvae.certificates.propagation.graph import Add, Graph
from robustvae.certificates.propagation.operator import Operator, operator_of
from robustvae.certificates.propagation.rows import Cause
from robustvae.certificates.propagation.sweep import Relaxation
from robustvae.certificates.propagation.trace import traced

__all__ = [
    "Add",
    "Cause",
    "Graph",
    "LinearBounds",
    "Method",
    "METHODS",
    "Operator",
    "operator_of",
    "operators",
    "Relaxation",
    "traced",
]
