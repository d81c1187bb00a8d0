"""Settings: each is checked by its name, with what is allowed and what came."""

from __future__ import annotations

from typing import Any

import pytest
from http_support import User, Users, authorize

from microbatch import http
from microbatch.http import BatchAPI

WRONG_API = [
    ({"challenge": ""}, "challenge must be printable ASCII characters, got ''"),
    ({"challenge": 5}, "challenge must be a str, got 5"),
    ({"challenge": "a\r\nb"}, "challenge must be printable ASCII"),
    ({"base_path": "api"}, "base_path must be a path that begins with one /, got 'api'"),
    ({"base_path": "//evil"}, "base_path must be a path that begins with one /"),
    ({"max_body_bytes": 0}, "max_body_bytes must be at least 1, got 0"),
    ({"max_items": 0}, "max_items must be at least 1, got 0"),
    ({"sync_max_items": -1}, "sync_max_items must be at least 0, got -1"),
    ({"max_job_items": 1.5}, "max_job_items must be an int, got 1.5"),
    ({"max_item_bytes": 0}, "max_item_bytes must be at least 1"),
    ({"max_import_bytes": 0}, "max_import_bytes must be at least 1"),
    ({"max_import_items": 0}, "max_import_items must be at least 1"),
    ({"body_timeout": 0}, "body_timeout must be greater than 0, got 0"),
    ({"timeout": float("inf")}, "timeout must be finite, got inf"),
    ({"max_open_jobs": 0}, "max_open_jobs must be at least 1"),
    ({"owner_share": 1.5}, "owner_share must be at most 1, got 1.5"),
    ({"owner_share": 0}, "owner_share must be greater than 0, got 0"),
    ({"idempotency": "on"}, "idempotency must be 'optional', 'required' or 'off', got 'on'"),
    ({"idempotency_ttl": 0}, "idempotency_ttl must be greater than 0"),
    ({"idempotency_max": 0}, "idempotency_max must be at least 1"),
    ({"idempotency_store": "x"}, "idempotency_store must be a DurableQueue, a DurableBatcher or None"),
    ({"all_failed_status": 500}, "all_failed_status must be 207, 200, 400 or 422, got 500"),
    ({"status_of": 5}, "status_of must be a function or None, got 5"),
    ({"rate": 5}, r"rate must be \(items, seconds\) or None, got 5"),
    ({"rate": (0, 1)}, "rate's items must be at least 1, got 0"),
    ({"rate": (1, 0)}, "rate's seconds must be greater than 0, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), WRONG_API)
def test_a_wrong_setting_of_an_api_is_refused(settings: dict[str, Any], message: str) -> None:
    """At once, and not with the first request that meets it."""
    with pytest.raises((TypeError, ValueError), match=message):
        BatchAPI(authorize=authorize, **settings)


def generator(items: list[Any]) -> Any:
    yield items


WRONG_COLLECTION = [
    ("Users", {}, r"name must match \[a-z\]\[a-z0-9_-\]\*, got 'Users'"),
    ("a/b", {}, "name must match"),
    (5, {}, "name must be a str, got 5"),
    ("batch", {}, "name must be none of 'batch', 'jobs', 'healthz', 'readyz', got 'batch'"),
    ("jobs", {}, "name must be none of"),
    ("users", {}, "name must be new, got 'users', which is a collection already"),
    ("more", {"create": None}, "collection 'more' must have create, update, delete, read, queue or export"),
    ("more", {"create": 5}, "create must be a bulk handler or a Batcher, got 5"),
    ("more", {"delete": generator}, "handler must not be a plain generator function"),
    ("more", {"queue": "x"}, "queue must be a DurableQueue, a DurableBatcher or None, got 'x'"),
    ("more", {"export": 5}, "export must be a function or None, got 5"),
    ("more", {"atomic": 5}, "atomic must be a function or None, got 5"),
    ("more", {"validate": authorize}, "validate must be a plain function or None"),
    ("more", {"authorize": len}, "authorize must be an async function"),
    ("more", {"item_type": object()}, "item_type must be a type that msgspec can decode"),
    ("more", {"id_type": object()}, "id_type must be a type that msgspec can decode"),
    ("more", {"item_type": dict, "update": len}, "update_type must be given where item_type is no msgspec.Struct"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "message"), WRONG_COLLECTION)
def test_a_wrong_setting_of_a_collection_is_refused(
    name: Any, settings: dict[str, Any], message: str
) -> None:
    """And nothing of it is added."""
    api = BatchAPI(authorize=authorize)
    api.collection("users", item_type=User, create=Users().create)
    with pytest.raises((TypeError, ValueError), match=message):
        api.collection(name, **({"item_type": User, "create": Users().create} | settings))


def test_what_a_missing_extra_brings_is_named() -> None:
    """Whoever asks for it learns what to install."""
    with pytest.raises(
        AttributeError, match=r"module 'microbatch\.http' has no attribute 'Nothing'"
    ):
        http.Nothing  # type: ignore[attr-defined]
