"""aiodataloader's own tests pass over Loader, through an adapter of at most 60 lines.

They are taken from its source distribution, by pip, and checked by its hash.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support import ENVIRONMENT, HAS_UVLOOP

ADAPTER = Path(__file__).with_name("dataloader_adapter.py")
SDIST = "aiodataloader-0.4.3"
SHA256 = "b8c07ed7fddfdccc2d6298c247b1e5fe9779e5b1c38f2e6ec541a041683ef7e8"
#: How many tests it has: a suite that runs none passes too.
TESTS = 25

#: In the place of pytest-asyncio: each test in an event loop of its own.
CONFTEST = """
import asyncio, inspect, pytest

def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: runs in an event loop")

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    factory = {factory}
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(pyfuncitem.obj())
    return True
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tests, as they came."""
    folder = tmp_path_factory.mktemp("sdist")
    pip = [
        shutil.which("python3") or sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
    ]
    command = [*pip, "--no-binary", ":all:", "--dest", str(folder), SDIST.replace("-", "==")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = folder / f"{SDIST}.tar.gz"
    if not archive.exists():
        pytest.skip(f"pip cannot download {SDIST}: {done.stderr.strip()[-200:]}")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
    with tarfile.open(archive) as tar:
        tests = tar.extractfile(f"{SDIST}/test_aiodataloader.py")
        assert tests is not None
        return tests.read().decode()


def test_the_adapter_is_short() -> None:
    """What it takes to be one more DataLoader."""
    assert ADAPTER.read_text(encoding="utf-8").count("\n") <= 60


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", *(["uvloop"] if HAS_UVLOOP else [])])
def test_aiodataloaders_own_tests_pass(suite: str, loop: str, tmp_path: Path) -> None:
    """Whoever comes from it finds what is used to."""
    factory = "None" if loop == "asyncio" else "__import__('uvloop').new_event_loop"
    (tmp_path / "conftest.py").write_text(CONFTEST.format(factory=factory), encoding="utf-8")
    (tmp_path / "aiodataloader.py").write_text(
        ADAPTER.read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "test_aiodataloader.py").write_text(suite, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=ran.xml"]
    command += ["-p", "no:asyncio", "--rootdir", str(tmp_path), "-W", "error"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = ET.parse(tmp_path / "ran.xml").getroot().find("testsuite")
    assert ran is not None
    assert (int(ran.get("tests", 0)), ran.get("skipped")) == (TESTS, "0")
