"""The page: look into queues with a browser, and mend them."""

from .page import QueuePage

__all__ = ["QueuePage"]
