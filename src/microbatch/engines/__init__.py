"""Engines: microbatch inside what already distributes work.

Each module stands behind an extra of its own and is imported by its own name: ``faststream``, ``taskiq``,
``forward``. Each message of the engine is one item, acknowledged when that item has its outcome.
"""

__all__: list[str] = []
