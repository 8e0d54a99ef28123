"""A complete plug-in for robustvae: every member is one file."""
