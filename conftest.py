"""The library is imported whole before pytest collects doctests from its files.

pytest imports each file by its path. A file that is not imported yet would be run a second time,
with classes of its own that no `isinstance` knows.
"""

import robustvae as rv

for _name in rv.__all__:
    getattr(rv, _name)
