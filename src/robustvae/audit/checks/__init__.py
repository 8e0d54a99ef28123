"""Checks of an audit's evidence, one file each; they read rows and need no torch."""
