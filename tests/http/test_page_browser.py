"""The page in a real browser, while a worker works: looks, actions, two widths, light and dark, no barriers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import axe_core_python
import pytest
import uvicorn
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.servers import kept_port
from microbatch import ItemError
from microbatch.durable import DurableBatcher
from microbatch.http import QueuePage

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

AXE = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
BARRIERS = """const done = arguments[0];
axe.run().then((found) => done(found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)])));"""


class Shop:
    """A worker that handles as many batches as it is let, and a page about its queue, served in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.job = self.address = ""
        self._ready = threading.Event()
        self._may_work = threading.Event()
        self._thread = threading.Thread(target=lambda: anyio.run(self._run))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._may_work.set()
        self._server.should_exit = True
        self._page.end_streams_soon()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def let_it_work(self) -> None:
        self._may_work.set()

    async def _handle(self, items: list[Any]) -> list[Any]:
        if "wait" in items[0]:
            await anyio.to_thread.run_sync(self._may_work.wait)
        return [
            ItemError("out of stock", code="no_stock")
            if one.get("n", 1) % 7 == 0
            else {"sent": True}
            for one in items
        ]

    async def _run(self) -> None:
        async with DurableBatcher(
            self._path,
            self._handle,
            item_type=Any,
            queue="orders",
            max_batch_size=10,
            telemetry=False,
        ) as worker:
            first = await worker.enqueue_job(
                [{"n": n, "note": "<script>document.title='run'</script>"} for n in range(20)]
            )
            await first.wait()
            await worker.enqueue({"n": 7})
            items = [{"n": n} for n in range(1, 11)] + [{"n": n, "wait": 1} for n in range(11, 21)]
            job = await worker.enqueue_job(items, owner="anna", batch_size=10, ordered=True)
            self.job = job.id
            self._page = Page([worker], authorize=lambda _: "act")
            config = uvicorn.Config(
                self._page,
                log_level="error",
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=1,
            )
            self._server = uvicorn.Server(config)
            self._page.on_loop()
            with socket.create_server(
                ("127.0.0.1", 0)
            ) as listener:  # it listens: nobody has to wait
                self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
                self._ready.set()
                await self._server.serve(sockets=[listener])


class Page(QueuePage):
    """Whose streams another thread may end."""

    def on_loop(self) -> None:
        self.token = anyio.lowlevel.current_token()

    def end_streams_soon(self) -> None:
        anyio.from_thread.run_sync(self.end_streams, token=self.token)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Shop(tmp_path_factory.mktemp("shop") / "orders.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with kept_port() as port:
        service = Service("/usr/bin/chromedriver", port)
        driver = webdriver.Chrome(options=options, service=service)
        driver.set_script_timeout(60)
        yield driver
        driver.quit()


def look(driver: webdriver.Chrome, width: int, scheme: str) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(driver: webdriver.Chrome, what: Any) -> Any:
    """Wait until something holds; the page that it was found on may be left between two words of the question."""
    waiting = WebDriverWait(driver, 60, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(what)


@pytest.mark.parametrize(
    ("width", "scheme"), [(w, s) for w in (1280, 390) for s in ("light", "dark")]
)
def test_pages_have_no_barriers_fit_the_width_and_complain_of_nothing(
    shop, chromium, width, scheme
):
    """axe finds nothing, nothing is wider than the screen, and the policy had nothing to forbid."""
    look(chromium, width, scheme)
    for path in ("/", "/q/orders?state=dead", "/q/orders/items/1", "/q/orders/jobs", f"/q/orders/jobs/{shop.job}",
                 "/q/orders/confirm?do=pause"):  # fmt: skip
        chromium.get(shop.address + path)
        chromium.execute_script(AXE)
        assert chromium.execute_async_script(BARRIERS) == [], path
        wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert chromium.execute_script(wider) == 0, path
        ground = "return getComputedStyle(document.body).backgroundColor"
        assert (chromium.execute_script(ground) == "rgb(255, 255, 255)") == (scheme == "light")
        assert chromium.title != "run"  # the script in a payload is text
    assert chromium.get_log("browser") == []


def test_an_action_asks_and_works_by_keyboard_alone(shop, chromium):
    """Tab to the button, Enter, and Enter once more at the question."""
    look(chromium, 1280, "light")
    chromium.get(shop.address + "/q/orders?state=dead")
    every = chromium.find_element(By.ID, "every")
    every.send_keys(Keys.SPACE)
    boxes = chromium.find_elements(By.CSS_SELECTOR, 'input[name="id"]')
    assert boxes
    assert all(box.is_selected() for box in boxes)
    chromium.find_element(By.CSS_SELECTOR, 'form button[value="purge"]').send_keys(Keys.ENTER)
    until(chromium, lambda d: "for good?" in d.find_element(By.TAG_NAME, "h1").text)
    chromium.find_element(By.CSS_SELECTOR, "button.primary").send_keys(Keys.ENTER)
    until(chromium, lambda d: d.find_elements(By.CSS_SELECTOR, ".note"))
    assert "removed." in chromium.find_element(By.CSS_SELECTOR, ".note").text
    assert not chromium.find_elements(By.CSS_SELECTOR, 'input[name="id"]')


def test_progress_moves_while_a_worker_works(shop, chromium):
    """Without a reload: the page follows the job to its end."""
    chromium.get(f"{shop.address}/q/orders/jobs/{shop.job}")

    def value(driver: webdriver.Chrome) -> float:
        return float(driver.execute_script("return document.querySelector('progress').value"))

    until(chromium, lambda d: d.find_element(By.ID, "following").text == "live")
    until(chromium, lambda d: value(d) == 10)
    chromium.execute_script("window.same = true")
    shop.let_it_work()
    until(chromium, lambda d: value(d) == 20)
    until(chromium, lambda d: "partially succeeded" in d.find_element(By.TAG_NAME, "main").text)
    assert chromium.execute_script("return window.same") is True
