"""The server of ``ui``: it ends soon after it is told to, whatever is open."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from microbatch._loops.on_asyncio import running_loop

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from microbatch.http import QueuePage

#: Seconds that answers under way get once the end has come; then they are cut off.
GRACE = 1

#: Seconds after which the process ends, should something hang: a disk, say. What SQLite has committed stays.
END = 1.8


class PageServer(uvicorn.Server):
    """Serves a page until SIGINT or SIGTERM.

    Args:
        app: What answers.
        page: The page in it, whose streams end first.
    """

    def __init__(self, app: Any, page: QueuePage) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would tell the token, and on stdout
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
        )
        super().__init__(config)
        self._page = page
        self._loop: Any = None
        self._last_resort = threading.Timer(END, _leave)
        self._last_resort.daemon = True

    async def run_at(self, listener: socket.socket) -> None:
        """Serve at a socket that listens."""
        self._loop = running_loop()
        await self.serve(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End: uvicorn calls this when a signal came."""
        del sig, frame
        if self.should_exit:
            return
        self.should_exit = True
        self._last_resort.start()
        # What is cut off then is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._page.end_streams)

    def ended(self) -> None:
        """Say that everything is closed."""
        self._last_resort.cancel()


def _leave() -> None:
    sys.stderr.write("microbatch: something is still open: cut off\n")
    sys.stderr.flush()
    os._exit(0)
