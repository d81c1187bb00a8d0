"""Batch endpoints over HTTP: requests share bulk calls, batches answer item by item, large ones become jobs.

``BatchAPI`` is an ASGI application, served by itself or mounted in another one. The extra is
``microbatch[http]``; it runs on asyncio and, where no durable queue is used, on trio.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    from ._api import BatchAPI
    from ._operations import Update
    from ._principals import Principal
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] != "starlette":
        raise
    raise ImportError(
        "microbatch.http needs Starlette: pip install 'microbatch[http]'", name=_error.name
    ) from _error

__all__ = ["BatchAPI", "Principal", "Update"]

#: What needs more than this extra, and is imported when somebody asks for it: its module, and the extra.
_LATER = {"Webhooks": ("._webhooks", "webhooks"), "QueuePage": ("._page", "ui")}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _LATER[name]
    try:
        return getattr(importlib.import_module(module, __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("microbatch"):
            raise
        raise ImportError(
            f"{name} needs {error.name}: pip install 'microbatch[{extra}]'", name=error.name
        ) from error
