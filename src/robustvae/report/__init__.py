"""A record as a page, as figures, and as a table on the terminal. No torch."""

from robustvae.report.files import read, write
from robustvae.report.profiles.section import section_of
from robustvae.report.terminal import table

__all__ = ["read", "section_of", "table", "write"]
