"""The command ``microbatch``: look into a queue, mend it, import a file, measure a handler.

Install with ``microbatch[cli]`` for tables, progress bars and live views; without it there is plain text.
"""

from ._main import main

__all__ = ["main"]
