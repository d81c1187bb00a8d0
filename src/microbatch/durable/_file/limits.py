"""How much a queue may hold, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from microbatch._pure import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a queue may hold, and for how long; each as the setting of its name.

    Attributes:
        max_depth: Items not yet ended.
        max_file_bytes: Pages in use plus the write-ahead log; None for no bound.
        key_ttl: Seconds for which a key is remembered.
        result_ttl: Seconds for which done and cancelled items are kept.
        keep_dead: Dead letters kept at most; None for no bound.
        keep_done: Done items kept at most; None for no bound.
        job_ttl: Seconds for which an ended job's row is kept.
    """

    max_depth: int = 1_000_000
    max_file_bytes: int | None = None
    key_ttl: float = 86_400.0
    result_ttl: float = 86_400.0
    keep_dead: int | None = None
    keep_done: int | None = None
    job_ttl: float = 604_800.0

    def __post_init__(self) -> None:
        checks.whole_number("max_depth", self.max_depth, 1)
        for setting, minimum in (("max_file_bytes", 1), ("keep_dead", 0), ("keep_done", 0)):
            count = getattr(self, setting)
            if count is not None:
                checks.whole_number(setting, count, minimum)
        checks.number("key_ttl", self.key_ttl, minimum=0)
        checks.number("result_ttl", self.result_ttl, minimum=0)
        checks.number("job_ttl", self.job_ttl, minimum=0)
