"""Methods of certification, one file a family."""

from robustvae.certificates.methods.barrett import Barrett
from robustvae.certificates.methods.base import Finding, Method, Task
from robustvae.certificates.methods.first_order import FirstOrder
from robustvae.certificates.methods.lipschitz import (
    Envelope,
    Generalized,
    Noncentral,
    Tangent,
    TraceMarkov,
)
from robustvae.certificates.methods.neyman_pearson import NeymanPearson
from robustvae.certificates.methods.sampled_reach import SampledReach
from robustvae.certificates.methods.smoothing import Smoothing
from robustvae.certificates.methods.support_set import SupportSet

__all__ = [
    "Barrett",
    "Envelope",
    "Finding",
    "FirstOrder",
    "Generalized",
    "Method",
    "NeymanPearson",
    "Noncentral",
    "SampledReach",
    "Smoothing",
    "SupportSet",
    "Tangent",
    "Task",
    "TraceMarkov",
]
