"""The event loops, asyncio (uvloop too) and trio, behind one seam: waiters, timers, tasks and threads."""
