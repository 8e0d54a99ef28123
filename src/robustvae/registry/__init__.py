"""Names, specs and plug-ins: one registry of everything that can be chosen by name."""

from robustvae.registry.members import (
    FAMILIES,
    GROUP,
    PATH,
    Entry,
    check_code,
    describe,
    family_base,
    family_of,
    lookup,
    modules_of,
    name_of,
    names,
    outside_names,
    register,
    target_of,
)
from robustvae.registry.specs import build, build_fields, spec_of
from robustvae.registry.text import is_word, parse

__all__ = [
    "build",
    "build_fields",
    "check_code",
    "describe",
    "Entry",
    "FAMILIES",
    "family_base",
    "family_of",
    "GROUP",
    "is_word",
    "lookup",
    "modules_of",
    "name_of",
    "names",
    "outside_names",
    "parse",
    "PATH",
    "register",
    "spec_of",
    "target_of",
]
