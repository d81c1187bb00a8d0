"""Settings of a BatchAPI and of its collections, checked by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from microbatch._core.batcher import Batcher
from microbatch._pure import checks
from microbatch._pure.handler import handler_kind
from microbatch.durable.queue import DurableQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._principals import Authorize

#: What a collection cannot be called: these stand beside collections in paths.
RESERVED = ("batch", "jobs", "healthz", "readyz")

ALL_FAILED = (207, 200, 400, 422)

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OPERATIONS = ("create", "update", "delete", "read")


class APISettings:
    """The settings of a `BatchAPI`, each checked; `BatchAPI` says what each means."""

    def __init__(
        self,
        *,
        authorize: Authorize,
        challenge: str,
        base_path: str | None,
        max_body_bytes: int,
        max_items: int,
        sync_max_items: int,
        max_job_items: int,
        max_item_bytes: int,
        max_import_bytes: int,
        max_import_items: int,
        body_timeout: float,
        timeout: float,
        max_open_jobs: int,
        owner_share: float,
        idempotency: str,
        idempotency_ttl: float,
        idempotency_max: int,
        idempotency_store: Any,
        all_failed_status: int,
        status_of: Callable[[str], int | None] | None,
        rate: tuple[int, float] | None,
        webhooks: Any,
    ) -> None:
        _async_function("authorize", authorize)
        self.authorize: Authorize = authorize
        self.challenge: str = _header_value("challenge", challenge)
        self.base_path: str | None = _base_path(base_path)
        self.max_body_bytes: int = checks.whole_number("max_body_bytes", max_body_bytes, 1)
        self.max_items: int = checks.whole_number("max_items", max_items, 1)
        self.sync_max_items: int = checks.whole_number("sync_max_items", sync_max_items, 0)
        self.max_job_items: int = checks.whole_number("max_job_items", max_job_items, 1)
        self.max_item_bytes: int = checks.whole_number("max_item_bytes", max_item_bytes, 1)
        self.max_import_bytes: int = checks.whole_number("max_import_bytes", max_import_bytes, 1)
        self.max_import_items: int = checks.whole_number("max_import_items", max_import_items, 1)
        self.body_timeout: float = checks.number("body_timeout", body_timeout, above=0)
        self.timeout: float = checks.number("timeout", timeout, above=0)
        self.max_open_jobs: int = checks.whole_number("max_open_jobs", max_open_jobs, 1)
        self.owner_share: float = checks.number("owner_share", owner_share, above=0)
        if owner_share > 1:
            raise ValueError(f"owner_share must be at most 1, got {owner_share}")
        if idempotency not in ("optional", "required", "off"):
            raise ValueError(
                f"idempotency must be 'optional', 'required' or 'off', got {idempotency!r}"
            )
        self.idempotency: str = idempotency
        self.idempotency_ttl: float = checks.number("idempotency_ttl", idempotency_ttl, above=0)
        self.idempotency_max: int = checks.whole_number("idempotency_max", idempotency_max, 1)
        self.idempotency_store: DurableQueue[Any, Any] | None = _queue(
            "idempotency_store", idempotency_store
        )
        if isinstance(all_failed_status, bool) or all_failed_status not in ALL_FAILED:
            raise ValueError(
                f"all_failed_status must be 207, 200, 400 or 422, got {all_failed_status!r}"
            )
        self.all_failed_status: int = all_failed_status
        self.status_of: Callable[[str], int | None] | None = checks.function("status_of", status_of)
        self.rate: tuple[int, float] | None = _rate(rate)
        self.webhooks: Any = webhooks


class CollectionSettings:
    """The settings of a collection, each checked; `BatchAPI.collection` says what each means."""

    def __init__(
        self,
        name: str,
        *,
        item_type: Any,
        update_type: Any,
        id_type: Any,
        create: Any,
        update: Any,
        delete: Any,
        read: Any,
        queue: Any,
        export: Any,
        atomic: Any,
        validate: Any,
        authorize: Any,
    ) -> None:
        given: Any = name
        if not isinstance(given, str):
            raise TypeError(f"name must be a str, got {given!r}")
        if _NAME.fullmatch(given) is None:
            raise ValueError(f"name must match [a-z][a-z0-9_-]*, got {given!r}")
        if given in RESERVED:
            raise ValueError(
                f"name must be none of {', '.join(map(repr, RESERVED))}, got {given!r}"
            )
        self.name: str = given
        self.item_type: Any = item_type
        self.update_type: Any = update_type
        self.id_type: Any = id_type
        handlers = zip(_OPERATIONS, (create, update, delete, read), strict=True)
        self.handlers: Mapping[str, Any] = {
            operation: _handler(operation, handler)
            for operation, handler in handlers
            if handler is not None
        }
        self.queue: DurableQueue[Any, Any] | None = _queue("queue", queue)
        if not self.handlers and queue is None and export is None:
            raise ValueError(
                f"collection {given!r} must have create, update, delete, read, queue or export, got none"
            )
        self.export: Any = checks.function("export", export)
        self.atomic: Any = checks.function("atomic", atomic)
        if validate is not None and (not callable(validate) or handler_kind(validate) != "thread"):
            raise TypeError(f"validate must be a plain function or None, got {validate!r}")
        self.validate: Callable[[Any], object] | None = validate
        if authorize is not None:
            _async_function("authorize", authorize)
        self.authorize: Any = authorize


def _async_function(name: str, function: Any) -> None:
    if not callable(function) or handler_kind(function) != "async":
        raise TypeError(f"{name} must be an async function, got {function!r}")


def _handler(name: str, handler: Any) -> Any:
    if isinstance(handler, Batcher):
        return handler
    if not callable(handler):
        raise TypeError(f"{name} must be a bulk handler or a Batcher, got {handler!r}")
    handler_kind(handler)  # refuses plain generator functions
    return handler


def _queue(name: str, queue: Any) -> DurableQueue[Any, Any] | None:
    if queue is not None and not isinstance(queue, DurableQueue):
        raise TypeError(f"{name} must be a DurableQueue, a DurableBatcher or None, got {queue!r}")
    return queue


def _header_value(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError(f"{name} must be printable ASCII characters, got {value!r}")
    return value


def _base_path(value: Any) -> str | None:
    if value is None:
        return None
    path = _header_value("base_path", value) if value else ""
    if path and (not path.startswith("/") or path.startswith("//") or "?" in path or "#" in path):
        raise ValueError(f"base_path must be a path that begins with one /, got {value!r}")
    return path.rstrip("/")


def _rate(rate: Any) -> tuple[int, float] | None:
    if rate is None:
        return None
    try:
        items, seconds = rate
    except (TypeError, ValueError):
        raise TypeError(f"rate must be (items, seconds) or None, got {rate!r}") from None
    return checks.whole_number("rate's items", items, 1), checks.number(
        "rate's seconds", seconds, above=0
    )
