"""Profiles: audits for a use, each a YAML file here and what it measures beyond its plan."""
