"""A server of its own over a queue whose workers run elsewhere: ``python import_server.py PATH DESCRIPTOR``, of a socket that listens."""

from __future__ import annotations

import sys

import uvicorn
from http_support import User, authorize

from microbatch.durable import DurableQueue
from microbatch.http import BatchAPI

queue = DurableQueue(sys.argv[1], item_type=User, result_type=User, max_depth=2_000_000)
api = BatchAPI(authorize=authorize, owner_share=1.0)
api.collection("users", item_type=User, queue=queue)
uvicorn.run(api, fd=int(sys.argv[2]), log_level="warning", timeout_keep_alive=60)
