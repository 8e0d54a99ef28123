"""The command line: one file a command, imported when its command is called.

Exit codes: 0 done; 1 a requirement, a check of the evidence, or an input failed; 2 wrong use; 130
interrupted.
"""

from robustvae.cli.entry import DONE, FAILED, INTERRUPTED, WRONG_USE, main

__all__ = ["DONE", "FAILED", "INTERRUPTED", "main", "WRONG_USE"]
