"""What one principal may have, looked at while it comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from http_support import User, Users, api_of

from microbatch.durable import DurableQueue
from microbatch.http._job_shares import ComingIn, JobShare
from microbatch.http._problem import Problem

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.anyio
@pytest.mark.real_time
@pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True)
async def test_what_comes_in_during_a_look_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job came too late for the pages that were read, and it is on its way no more: seen by neither."""
    async with DurableQueue(tmp_path / "q", item_type=User, max_depth=20) as queue:
        parts, coming = api_of(Users(), queue=queue, owner_share=0.5)._parts, ComingIn()
        first, second = (JobShare(parts, coming, queue, "ann") for _ in range(2))
        await first.look(6)
        read, looks = queue.jobs, []

        async def jobs(owner: str, life: Any, **more: Any) -> Any:
            page = await read(owner, life, **more)
            looks.append(life)
            if looks == ["queued", "running", "cancelling"]:
                await queue.enqueue_job([User(name="a")] * 6, owner="ann")
                first.leave()
            return page

        monkeypatch.setattr(queue, "jobs", jobs)
        with pytest.raises(Problem) as caught:
            await second.look(6)
        assert (caught.value.status, caught.value.type) == (429, "too-many-items")
        assert looks == ["queued", "running", "cancelling"] * 2
        second.leave()
        left = [coming.items, coming.jobs, coming.requests, coming.ends]
        assert [dict(counts) for counts in left] == [{}] * 4  # nothing is kept of who is gone
