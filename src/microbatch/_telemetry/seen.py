"""What telemetry sees of a batch: it changes nothing of it but its own record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from microbatch._pure.reason import Reason

    from .kinds import Kind


class SeenRun(Protocol):
    """A running batch, as `microbatch._core.run.Run` keeps it."""

    record: Any

    @property
    def size(self) -> int: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def since(self) -> float: ...
    @property
    def started(self) -> float: ...
    @property
    def waiters(self) -> Sequence[Any]: ...
    @property
    def group(self) -> Any: ...
    @property
    def entries(self) -> Sequence[Any] | None: ...
    @property
    def attempts(self) -> Sequence[int] | None: ...
    @property
    def origins(self) -> Sequence[tuple[bytes | None, int]] | None: ...
    @property
    def error(self) -> Kind | None: ...
    @property
    def errors(self) -> Mapping[Kind, int] | None: ...
    @property
    def retried(self) -> Mapping[Kind, int] | None: ...
    @property
    def held(self) -> int: ...
    @property
    def began_hold(self) -> bool: ...
