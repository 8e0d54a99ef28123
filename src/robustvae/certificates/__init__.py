"""Lower bounds on robustness margins that are theorems about the stored weights."""

from robustvae.certificates.certificate import Certificate
from robustvae.certificates.certification import certify
from robustvae.certificates.constants import Constants, lipschitz_bound, lipschitz_constants
from robustvae.certificates.curves import CertifiedCurve, certified_curve
from robustvae.certificates.decisions import CertifiedDecision, certify_decision
from robustvae.certificates.globally import Design, design, global_margin, isotropic_margin
from robustvae.certificates.methods.support_set import support_set_error
from robustvae.certificates.movement import Encoder, Movement
from robustvae.certificates.propagation import Add, Cause, LinearBounds, Relaxation
from robustvae.certificates.question import Question
from robustvae.certificates.scoring import (
    ExpectedScore,
    ScoreBounds,
    certified_auroc,
    certified_tpr,
    certify_expectation,
    certify_score,
    median_probability,
)
from robustvae.certificates.tangent import tangent_reach
from robustvae.certificates.tolerances import CertifiedRadii, certified_radii

__all__ = [
    "Add",
    "Cause",
    "Certificate",
    "certified_auroc",
    "certified_curve",
    "certified_radii",
    "certified_tpr",
    "CertifiedCurve",
    "CertifiedDecision",
    "CertifiedRadii",
    "certify",
    "certify_decision",
    "certify_expectation",
    "certify_score",
    "Constants",
    "Design",
    "design",
    "Encoder",
    "ExpectedScore",
    "global_margin",
    "isotropic_margin",
    "LinearBounds",
    "lipschitz_bound",
    "lipschitz_constants",
    "median_probability",
    "Movement",
    "Question",
    "Relaxation",
    "ScoreBounds",
    "support_set_error",
    "tangent_reach",
]
