"""The methods by name."""

from __future__ import annotations

from robustvae.certificates.methods.barrett import Barrett
from robustvae.certificates.methods.base import Method
from robustvae.certificates.methods.first_order import FirstOrder
from robustvae.certificates.methods.lipschitz import (
    Envelope,
    Generalized,
    Noncentral,
    Tangent,
    TraceMarkov,
)
from robustvae.certificates.methods.neyman_pearson import NeymanPearson

METHODS: dict[str, Method] = {
    "barrett": Barrett(),
    "envelope": Envelope(),
    "first_order": FirstOrder(),
    "generalized": Generalized(),
    "neyman_pearson": NeymanPearson(),
    "noncentral": Noncentral(),
    "tangent": Tangent(),
    "trace_markov": TraceMarkov(),
}
"""Every method, as it is asked by its name."""
