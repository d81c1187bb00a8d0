"""What a caller holds of an item that is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

R_co = TypeVar("R_co", covariant=True)


class Pending(Protocol[R_co]):
    """The result of one item, on its way: what ``submit_nowait`` returns.

    Await it once, from one task. Cancelling it, or the task that awaits it, withdraws the item if it is
    still buffered; dropping it does not. A failure that nobody awaited is logged once.
    """

    def __await__(self) -> Generator[Any, Any, R_co]:
        """Wait for the result; raise what the item's handler call raised for it."""
        ...

    def cancel(self) -> bool:
        """Stop waiting and withdraw the item if it is still buffered; False if it was done already."""
        ...

    def done(self) -> bool:
        """Tell whether there is a result, an error or a cancellation."""
        ...
