"""A span's identity in a few bytes: W3C Trace Context, as it stands in a durable row.

``traceparent``, and behind a line feed ``tracestate`` if there is one. Baggage is not kept: it may
hold personal data. Read by slicing the fixed format, a third of what the propagator takes; versions
after 00 may add fields, so those are left to the propagator.
"""

from __future__ import annotations

import re
from typing import Any

from opentelemetry.trace import SpanContext, TraceFlags, TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_VERSION_0 = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


#: Bytes of ``tracestate`` kept: what the W3C asks everybody to carry.
_STATE_MAX = 512


_propagator = TraceContextTextMapPropagator()


def encode(context: SpanContext) -> bytes | None:
    """Return what to store of a span's identity; None for an invalid one."""
    if not context.is_valid:
        return None
    head = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header() if context.trace_state else ""
    if not state or len(state) > _STATE_MAX:
        return head.encode()
    return f"{head}\n{state}".encode()


def decode(stored: Any) -> SpanContext | None:
    """Return the identity that was stored; None for what is none, of whatever type: never an error."""
    if not isinstance(stored, bytes):
        return None
    head, _, state = stored.partition(b"\n")
    match = _VERSION_0.fullmatch(head)
    if match is None:
        carrier = {"traceparent": head.decode("ascii", "replace")}
        found = get_current_span(_propagator.extract(carrier)).get_span_context()
        return found if found.is_valid and head[:2] != b"00" else None
    return SpanContext(
        trace_id=int(match[1], 16),
        span_id=int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16)),
        trace_state=TraceState.from_header([state.decode("ascii", "replace")]) if state else None,
    )
