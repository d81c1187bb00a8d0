"""A server of its own over a queue whose workers run elsewhere: ``python import_server.py PATH PORT``."""

from __future__ import annotations

import sys

import uvicorn
from http_support import User, authorize

from microbatch.durable import DurableQueue
from microbatch.http import BatchAPI

queue = DurableQueue(sys.argv[1], item_type=User, result_type=User, max_depth=2_000_000)
api = BatchAPI(authorize=authorize, owner_share=1.0)
api.collection("users", item_type=User, queue=queue)
uvicorn.run(api, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
