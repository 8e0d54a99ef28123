"""Measurements of this library's own methods and models."""
