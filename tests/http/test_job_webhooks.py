"""A request that names a webhook: its URL is judged, kept with the job, shown to nobody, and called at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from http_jobs_support import clients_of, shop_of
from http_support import User, Users, api_of
from receiver_support import Receiver
from standardwebhooks.webhooks import Webhook
from webhook_support import LOOPBACK, SECRET, webhooks

from microbatch.durable import DurableBatcher
from microbatch.http._webhooks import Webhooks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True),
]

BODY: dict[str, Any] = {"items": [{"name": "a"}], "options": {"async": True}}


async def test_the_end_of_a_job_is_told_to_the_webhook_that_its_request_names(
    tmp_path: Path,
) -> None:
    """A batch's, an import's and a retry's; each is one message, and no answer shows the URL."""
    users = Users()
    async with (
        Receiver() as receiver,
        webhooks(tmp_path / "w", allow=[f"127.0.0.1:{receiver.port}", *LOOPBACK]) as hooks,
        DurableBatcher(
            tmp_path / "q", users.create, item_type=User, on_job_end=hooks.on_job_end
        ) as queue,
    ):
        api = api_of(users, queue=queue, webhooks=hooks)
        url = f"http://127.0.0.1:{receiver.port}/hook?token=secret"
        async with api, clients_of(api) as (ann, _):
            sent = [
                await ann.post("/users/batch", json=BODY | {"webhook": {"url": url}}),
                await ann.post(
                    "/users/import",
                    params={"webhook": url},
                    content=b'{"name":"b"}\n',
                    headers={"content-type": "application/x-ndjson"},
                ),
            ]
            received = await receiver.got(2)
            told = {
                Webhook(SECRET).verify(one.body, one.headers)["data"]["jobId"] for one in received
            }
            assert told == {answer.json()["jobId"] for answer in sent}
            found = [await ann.get(answer.headers["location"]) for answer in sent]
            assert "secret" not in "".join(answer.text for answer in [*sent, *found])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "https://169.254.169.254/latest/meta-data",
            "the webhook's URL must be at a public address",
        ),
        ("http://example.com/", "the webhook's URL must begin with https://"),
        (
            "https://user:password@example.com/",  # not a secret
            "the webhook's URL must not have a user or a password",
        ),
        ("file:///etc/passwd", "the webhook's URL must begin with https://"),
    ],
)
async def test_a_url_that_may_not_be_called_is_refused_at_once(
    tmp_path: Path, url, message
) -> None:
    """The client is told why, and no job is made."""

    async def told(status: Any) -> None: ...

    hooks = Webhooks(tmp_path / "w", secret_of=lambda owner: SECRET)
    async with shop_of(tmp_path / "q", webhooks=hooks, of_queue={"on_job_end": told}) as shop:
        headers = {"content-type": "application/x-ndjson"}
        for sent in (
            await shop.ann.post("/users/batch", json=BODY | {"webhook": {"url": url}}),
            await shop.ann.post(
                "/users/import", params={"webhook": url}, content=b"", headers=headers
            ),
        ):
            assert sent.status_code == 422
            assert sent.json()["type"] == "invalid-webhook"
            assert sent.json()["detail"].startswith(message)
        assert (await shop.ann.get("/jobs")).json()["jobs"] == []


async def test_a_webhook_without_a_job_or_without_webhooks_is_refused(tmp_path: Path) -> None:
    """It would never be called."""
    webhook = {"webhook": {"url": "https://example.com/"}}
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post("/users/batch", json=BODY | webhook)
        assert (sent.status_code, sent.json()["type"]) == (422, "webhooks-not-available")
        sent = await shop.ann.post("/users/batch", json={"items": [{"name": "a"}]} | webhook)
        assert (sent.status_code, sent.json()["type"]) == (422, "webhook-without-job")
        assert shop.users.calls == []
