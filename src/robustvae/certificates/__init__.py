"""Lower bounds on robustness margins that are theorems about the stored weights."""

from robustvae.certificates.certificate import Certificate, certify
from robustvae.certificates.constants import Constants, lipschitz_bound, lipschitz_constants

__all__ = ["Certificate", "Constants", "certify", "lipschitz_bound", "lipschitz_constants"]
