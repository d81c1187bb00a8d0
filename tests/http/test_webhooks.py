"""Webhooks: signed, sent again, given up; told of jobs that ended."""

from __future__ import annotations

import base64
import json
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from receiver_support import Receiver
from standardwebhooks.webhooks import Webhook
from webhook_support import LOOPBACK, SECRET, ended_job, webhooks

from benchmarks.servers import kept_port
from microbatch.durable import DurableQueue, JobStatus
from microbatch.http._message import METADATA_KEY, SECRET_BYTES, Message, keys_of, message_of
from microbatch.http._webhooks import DELAYS, Webhooks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

on_both_loops = pytest.mark.parametrize("backend_name", ["asyncio", "uvloop"], indirect=True)
on_asyncio = pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True)


def allowed(receiver: Receiver) -> list[str]:
    return [f"127.0.0.1:{receiver.port}", *LOOPBACK]


def url_of(receiver: Receiver) -> str:
    return f"http://127.0.0.1:{receiver.port}/hook?job=1"


async def settled(hooks: Webhooks) -> Any:
    """Wait until the one message has arrived or was given up."""
    while True:
        stats = await hooks._queue.stats()
        if stats.done + stats.dead:
            return stats
        await anyio.sleep(0.01)


async def until(hooks: Webhooks, state: str) -> None:
    """Wait until the one message is in a state: what the sender does when it likes."""
    while not getattr(await hooks._queue.stats(), state):  # noqa: ASYNC110
        await anyio.sleep(0.01)


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


@on_both_loops
async def test_the_end_of_a_job_is_told_and_its_signature_holds(tmp_path: Path) -> None:
    """The standard's own package is what receivers verify with."""
    async with Receiver() as receiver, webhooks(tmp_path / "w", allow=allowed(receiver)) as hooks:
        status = await ended_job(tmp_path / "q", hooks, url_of(receiver), owner="ann")
        (received,) = await receiver.got(1)
        assert (await settled(hooks)).done == 1
    assert received.line == "POST /hook?job=1 HTTP/1.1"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["webhook-id"] == f"msg_{status.id}"
    assert received.headers["content-type"] == "application/json"
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    told = Webhook(SECRET).verify(received.body, received.headers)
    assert told.pop("timestamp") == status.ended_at.isoformat().replace("+00:00", "Z")
    assert told == {
        "type": "job.ended",
        "data": {
            "jobId": status.id,
            "status": "completed",
            "outcome": "succeeded",
            "summary": {
                "total": 3, "succeeded": 3, "failed": 0, "skipped": 0, "cancelled": 0, "expired": 0, "errors": {},
            },
        },
    }  # fmt: skip


@on_asyncio
async def test_a_job_without_a_webhook_is_told_to_nobody(tmp_path: Path) -> None:
    """A job's own metadata is no URL to call."""
    async with webhooks(tmp_path / "w") as hooks:
        await ended_job(tmp_path / "q", hooks, None)
        await ended_job(tmp_path / "r", hooks, 5)
        stats = await hooks._queue.stats()
        assert stats.done + stats.dead + stats.depth == 0


@on_asyncio
async def test_a_job_that_is_told_twice_is_one_message(tmp_path: Path) -> None:
    """on_job_end is called at least once; the receiver need not pay for that."""
    async with Receiver() as receiver, webhooks(tmp_path / "w", allow=allowed(receiver)) as hooks:
        status = await ended_job(tmp_path / "q", hooks, url_of(receiver))
        await hooks.on_job_end(status)
        await hooks.on_job_end(status)
        assert (await settled(hooks)).done == 1
        assert len(receiver.received) == 1


@on_both_loops
async def test_what_fails_comes_again_with_the_same_id_and_body(tmp_path: Path) -> None:
    """By the id a receiver knows what it had; 3xx, 4xx and 5xx are failures alike."""
    answers: list[int | bytes] = [500, 302, 404, 429, b"rubbish\r\n\r\n", b"", 200]
    async with (
        Receiver(answers) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        received = await receiver.got(len(answers))
        stats = await settled(hooks)
    assert (stats.done, stats.dead) == (1, 0)
    assert len({(each.headers["webhook-id"], each.body) for each in received}) == 1
    assert receiver.connections == len(answers)  # a new one each time
    for each in received:
        Webhook(SECRET).verify(each.body, each.headers)


@on_asyncio
async def test_a_receiver_that_is_gone_is_not_asked_again(tmp_path: Path, caplog) -> None:
    """410 says that nobody wants it; what was given up can be seen, and in the log."""
    async with (
        Receiver([500, 410]) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        assert (await settled(hooks)).dead == 1
        assert len(receiver.received) == 2
        (letter,) = await hooks._queue.dead_letters()
    assert letter.error.message == "the receiver answered 410"
    logged = [r for r in caplog.records if r.name == "microbatch.http"]
    (record,) = [r for r in logged if r.levelno == logging.WARNING]
    assert record.getMessage().endswith("is given up after 2 attempts: the receiver answered 410")


@on_asyncio
async def test_it_is_given_up_when_all_attempts_are_used(tmp_path: Path) -> None:
    """Three days, by default; nothing goes on for ever."""
    async with (
        Receiver([500]) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), delays=(0, 0)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        assert (await settled(hooks)).dead == 1
        assert len(receiver.received) == 3


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [("1", 5, 6), ("3600", 3600, 3600), ("100000000", 86_400, 86_400), ("soon", 5, 6)],
)
@on_asyncio
async def test_a_delay_is_the_schedules_or_the_receivers_if_that_is_longer(
    tmp_path: Path, asked: str, least: float, most: float
) -> None:
    """A receiver knows best when it is back; but it neither hurries the schedule nor stops it for years."""
    answer = f"HTTP/1.1 503 So\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n".encode()
    async with Receiver([answer]) as receiver:
        hooks = webhooks(tmp_path / "w", allow=allowed(receiver), delays=DELAYS)
        (failed,) = await hooks._send([Message("msg_1", url_of(receiver), None, b"{}")])
    assert least <= failed.retry_after <= most


@on_asyncio
async def test_what_failed_waits_on_the_disk(tmp_path: Path) -> None:
    """For hours, and over restarts; a sender that goes on at once would use its attempts up in a second."""
    async with (
        Receiver([500]) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), delays=(3600,)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        while (stats := await hooks._queue.stats()).scheduled == 0:
            assert stats.done + stats.dead == 0
            await anyio.sleep(0.01)
        assert len(receiver.received) == 1


def test_the_schedule_is_the_specifications() -> None:
    """Its table ends at 75:35:05 after the start."""
    assert sum(DELAYS) == 75 * 3600 + 35 * 60 + 5


@on_asyncio
async def test_each_of_several_secrets_signs(tmp_path: Path) -> None:
    """So that one can follow another without a gap; the owner is whose they are."""
    other = "whsec_" + base64.b64encode(b"another one, also long enough").decode()
    asked = []

    async def secret_of(owner: str | None) -> list[str]:
        asked.append(owner)
        return [SECRET, other]

    async with (
        Receiver([500, 200]) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), secret_of=secret_of) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver), owner="ann")
        received = (await receiver.got(2))[1]
        await settled(hooks)
    for secret in (SECRET, other):
        Webhook(secret).verify(received.body, received.headers)
    assert asked == ["ann", "ann"]  # at each attempt


@on_asyncio
async def test_no_secret_is_stored(tmp_path: Path) -> None:
    """Who gets the file gets no secrets: neither as they are given nor as they sign."""
    async with (
        Receiver([500]) as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), delays=(3600,)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        await receiver.got(1)
        await until(hooks, "scheduled")
        stored = on_disk(tmp_path)
    assert b"job.ended" in stored
    (key,) = keys_of(SECRET)
    assert SECRET.encode() not in stored
    assert SECRET.removeprefix("whsec_").encode() not in stored
    assert key not in stored


@on_asyncio
async def test_what_secret_of_raises_is_tried_again_and_its_text_stays_here(
    tmp_path: Path, caplog
) -> None:
    """It asks a database, say, which is away for a moment and says its password in the error."""
    calls = []

    def secret_of(owner: str | None) -> str:
        calls.append(owner)
        if len(calls) == 1:
            raise OSError("password=hunter2")
        return SECRET

    async with (
        Receiver() as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), secret_of=secret_of) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        await receiver.got(1)
        await settled(hooks)
        stored = on_disk(tmp_path)
    assert len(calls) == 2
    assert b"hunter2" not in stored
    assert "secret_of failed" in caplog.text


@on_asyncio
async def test_an_owner_without_a_secret_is_told_nothing(tmp_path: Path) -> None:
    """An unsigned message is one that anybody may have sent."""
    async with (
        Receiver() as receiver,
        webhooks(tmp_path / "w", allow=allowed(receiver), secret_of=lambda _: None) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        assert (await settled(hooks)).dead == 1
        assert receiver.received == []


@pytest.mark.parametrize(
    ("secrets", "kind", "message"),
    [
        (5, TypeError, "secret_of must return a str or a list of them, got a int"),
        ([], TypeError, "secret_of must return a str or a list of them, got a list"),
        ([5], TypeError, "a webhook's secret must be a str, got a int"),
        ("whsec_", ValueError, "24 to 64 bytes in base64"),
        ("whsec_hunter2!", ValueError, "24 to 64 bytes in base64"),
        ("whsec_" + base64.b64encode(b"x" * (SECRET_BYTES[0] - 1)).decode(), ValueError, "24 to"),
        ("whsec_" + base64.b64encode(b"x" * (SECRET_BYTES[-1] + 1)).decode(), ValueError, "24 to"),
        ("whsec_é" + "a" * 40, ValueError, "24 to"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(secrets, kind, message) -> None:
    """One that is too short could be guessed from a signature; an error stands in logs."""
    with pytest.raises(kind, match=message) as caught:
        keys_of(secrets)
    assert "hunter2" not in str(caught.value)


def test_a_secret_may_come_without_its_prefix() -> None:
    """As the standard's packages take it."""
    assert keys_of(SECRET.removeprefix("whsec_")) == keys_of(SECRET)
    assert keys_of((SECRET, SECRET)) == keys_of(SECRET) * 2


@on_both_loops
async def test_what_has_not_arrived_is_sent_after_a_restart(tmp_path: Path) -> None:
    """An outage of the receiver and an end of the sender: what was stored comes all the same."""
    with kept_port() as port:  # nobody listens there
        receiver = Receiver(port=port)
        hooks = webhooks(tmp_path / "w", allow=allowed(receiver), delays=(0.0,) * 1000)
        async with hooks:
            await ended_job(tmp_path / "q", hooks, url_of(receiver))
            await until(hooks, "depth")
        async with (
            receiver,
            webhooks(tmp_path / "w", allow=allowed(receiver), delays=(0.0,) * 1000) as hooks,
        ):
            (received,) = await receiver.got(1)
            await settled(hooks)
    Webhook(SECRET).verify(received.body, received.headers)


@on_asyncio
async def test_it_works_from_the_first_call_on_and_is_closed_by_aclose(tmp_path: Path) -> None:
    """As a durable batcher does, which it is."""
    async with Receiver() as receiver:
        hooks = webhooks(tmp_path / "w", allow=allowed(receiver))
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        await receiver.got(1)
        await hooks.aclose()
        await hooks.aclose(0)
        assert "Webhooks over <DurableBatcher 'microbatch-webhooks'" in repr(hooks)


@on_asyncio
async def test_the_urls_of_messages_stand_in_their_own_queue(tmp_path: Path) -> None:
    """The file may be the jobs' own: queues in it do not meet."""
    async with (
        Receiver() as receiver,
        webhooks(tmp_path / "q", allow=allowed(receiver)) as hooks,
    ):
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        await receiver.got(1)
        await settled(hooks)
        async with DurableQueue(tmp_path / "q", item_type=int) as queue:
            page = await queue.jobs()
            assert [job.metadata for job in page.jobs] == [{METADATA_KEY: url_of(receiver)}]
            assert (await queue.stats()).done == 3


def test_check_says_what_is_wrong_with_a_url(tmp_path: Path) -> None:
    """For the client who sent it, before anything is stored."""
    hooks = webhooks(tmp_path / "w")
    hooks.check("https://example.com/hook")
    with pytest.raises(ValueError, match="must be at a public address"):
        hooks.check("https://169.254.169.254/latest/meta-data")


@on_asyncio
async def test_a_url_that_is_no_longer_allowed_is_given_up(tmp_path: Path) -> None:
    """The operator's list at the time of sending counts."""
    async with Receiver() as receiver, webhooks(tmp_path / "w", allow=["example.com"]) as hooks:
        await ended_job(tmp_path / "q", hooks, url_of(receiver))
        assert (await settled(hooks)).dead == 1
        (letter,) = await hooks._queue.dead_letters()
        assert letter.error.message == "the URL must be at a host and port that are allowed"
        assert receiver.connections == 0


@on_asyncio
async def test_a_host_with_an_address_that_is_not_public_is_tried_again(tmp_path: Path) -> None:
    """A name may have been wrong for a moment; nothing is sent to it meanwhile."""
    async with Receiver() as receiver:
        allow = [f"localhost:{receiver.port}"]
        async with webhooks(tmp_path / "w", allow=allow, delays=(0.0,)) as hooks:
            await ended_job(tmp_path / "q", hooks, f"http://localhost:{receiver.port}/")
            assert (await settled(hooks)).dead == 1
            (letter,) = await hooks._queue.dead_letters()
        assert letter.attempts == 2
        assert letter.error.message == "the host has an address that is not public"
        assert receiver.connections == 0


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"secret_of": 5}, TypeError, "secret_of must be a function, got 5"),
        ({"allow": "example.com"}, TypeError, "allow must be a list of hosts or None"),
        ({"delays": (-1,)}, ValueError, "delays must be at least 0, got -1"),
        ({"delays": ("1",)}, TypeError, "delays must be"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings, kind, message) -> None:
    """At once, by name."""
    with pytest.raises(kind, match=message):
        webhooks(tmp_path / "w", **settings)


def test_the_payload_is_json_without_the_jobs_own_data(tmp_path: Path) -> None:
    """A thin payload: what the job is about is fetched with the client's own rights."""

    now = datetime(2026, 1, 2, tzinfo=UTC)
    counts = {"total": 2, "succeeded": 0, "failed": 2, "skipped": 0, "cancelled": 0, "expired": 0}
    status = JobStatus(
        id="j", queue="q", owner="ann", key="k", metadata={METADATA_KEY: "https://x/", "a": "secret"}, retry_of=None,
        life="ended", outcome="failed", paused=False, errors={"bad": 2}, created_at=now, started_at=now,
        ended_at=now, expires_at=now, rate=0.0, eta=0.0, **counts,
    )  # fmt: skip
    message = message_of(status)
    assert message is not None
    assert (message.id, message.url, message.owner) == ("msg_j", "https://x/", "ann")
    told = json.loads(message.body)
    assert told["data"]["status"] == "failed"
    assert told["data"]["summary"] == counts | {"errors": {"bad": 2}}
    assert "secret" not in message.body.decode()
