"""Every exception that a user of microbatch can catch.

The tree::

    MicrobatchError
     ├─ Full                  no room: try later, or slow down
     │   └─ BatcherFull       the in-memory batcher's room is used up
     ├─ BatcherClosed         the batcher was closed: the item was not handled to its end
     ├─ BatchFailed           submit_many: some items failed; an ExceptionGroup with a .report
     ├─ BatchAborted          another item of an all-or-nothing batch failed
     ├─ ItemError             raise or return it for one item: a code, a message, retryable or not
     │   ├─ ItemNotFound      a bulk read found nothing for this item (also a KeyError)
     │   ├─ Skipped           the item was left out on purpose: counted apart from failures
     │   ├─ RateLimited       the backend takes nothing now: with retry= the items wait and go again
     │   └─ ItemTooHeavy      the item alone weighs more than a batch may (also a ValueError)
     ├─ ResultCountError      the handler's results do not match its items
     ├─ HandlerTimeout        the handler took longer than handler_timeout (also a TimeoutError)
     ├─ HandlerCrashed        the handler raised what is not an Exception, or a cancellation of its own
     ├─ HandlerStuck          too many handlers ignore their timeout: no new batch is started
     └─ WouldDeadlock         a handler waits on its own batcher (also a RuntimeError)

A handler's own exception reaches its callers unwrapped and is not part of this tree. Wrong arguments are
``ValueError`` and ``TypeError``, a wrong event loop is a ``RuntimeError``.

Each class keeps its fields in ``args`` and builds its message from them, so that every one of them can be
copied and pickled.
"""

from microbatch._pure.exceptions import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    Full,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemError,
    ItemNotFound,
    ItemTooHeavy,
    MicrobatchError,
    RateLimited,
    ResultCountError,
    Skipped,
    WouldDeadlock,
)
from microbatch._pure.report import BatchFailed

__all__ = [
    "BatchAborted",
    "BatchFailed",
    "BatcherClosed",
    "BatcherFull",
    "Full",
    "HandlerCrashed",
    "HandlerStuck",
    "HandlerTimeout",
    "ItemError",
    "ItemNotFound",
    "ItemTooHeavy",
    "MicrobatchError",
    "RateLimited",
    "ResultCountError",
    "Skipped",
    "WouldDeadlock",
]

for _name in __all__:  # tracebacks and pickles name the module where users find them
    globals()[_name].__module__ = __name__
