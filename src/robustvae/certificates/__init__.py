"""Lower bounds on robustness margins that are theorems about the stored weights."""

from robustvae.certificates.certification import Certificate, certify
from robustvae.certificates.constants import Constants, lipschitz_bound, lipschitz_constants
from robustvae.certificates.globally import Design, design, global_margin, isotropic_margin
from robustvae.certificates.movement import Encoder, Movement
from robustvae.certificates.propagation import Add, Cause, LinearBounds, Relaxation
from robustvae.certificates.question import Question
from robustvae.certificates.tangent import tangent_reach

__all__ = [
    "Add",
    "Cause",
    "Certificate",
    "certify",
    "Constants",
    "Design",
    "design",
    "Encoder",
    "global_margin",
    "isotropic_margin",
    "LinearBounds",
    "lipschitz_bound",
    "lipschitz_constants",
    "Movement",
    "Question",
    "Relaxation",
    "tangent_reach",
]
