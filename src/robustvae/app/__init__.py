"""The explorer: one model, one input, an attack by hand. Needs the extra `app`."""

from robustvae.app.explorer import Explorer, Scene

__all__ = ["Explorer", "Scene"]
