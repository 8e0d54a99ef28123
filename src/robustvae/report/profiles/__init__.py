"""Sections of the report that answer the question of a use; functions of the record alone."""
