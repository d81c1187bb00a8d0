"""What is installed is what the project file, the changelog and the README say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from flit_core import buildapi
from packaging.requirements import Requirement
from pages_support import ROOT, blocks_of

import microbatch

PACKAGE = Path(microbatch.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
POSIX_ONLY = {"crypt", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "resource", "spwd", "syslog",
              "termios", "tty"}  # fmt: skip


def installed() -> metadata.Distribution:
    try:
        return metadata.distribution("microbatch")
    except metadata.PackageNotFoundError:
        pytest.skip("microbatch is only on the path here, not installed")


def test_the_version_is_the_project_files():
    """One version: bug reports quote it."""
    assert microbatch.__version__ == PROJECT["version"]


def test_the_installed_version_is_the_packages():
    """What pip shows is what the module says."""
    assert installed().version == microbatch.__version__


def test_the_changelog_tells_of_this_version():
    """Keep a Changelog: unreleased on top, then this version with its date, and what versions promise."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert heads[1][0] == microbatch.__version__
    assert heads[1][1]
    assert "Semantic Versioning" in text


def test_the_dev_extra_is_real_and_installed_whole():
    """pip only warns about an extra that does not exist, and then the tests would run without their tools."""
    requirements = [Requirement(line) for line in installed().requires or []]
    dev = [r for r in requirements if r.marker and r.marker.evaluate({"extra": "dev"})
           and not r.marker.evaluate({"extra": ""})]  # fmt: skip
    assert len(dev) == len(PROJECT["optional-dependencies"]["dev"])
    wrong = [str(r) for r in dev if not r.specifier.contains(metadata.version(r.name))]
    assert wrong == []


def set_up_commands(page: str) -> list[str]:
    commands = [b.source.strip() for b in blocks_of(ROOT / page) if b.language == "sh"]
    return [command for command in commands if "-m venv" in command]


def test_the_two_commands_differ_in_what_they_install_and_run_alone():
    """Either works first or alone; .ci/run takes them from the README and runs them in both orders."""
    main_job, tests = set_up_commands("README.md")
    install = "python3 -m venv --without-pip .venv && python3 -m pip --python .venv/bin/python install -q -e '.[{}]' && .venv/bin/python {}"
    assert main_job == install.format("examples", "examples/import_airports.py")
    assert tests == install.format("dev", "-m pytest -n 2 --dist loadfile")
    assert set_up_commands("CONTRIBUTING.md") == [tests]


def test_the_first_command_installs_what_the_main_job_imports_and_no_more():
    """It is what a newcomer waits for: type checkers and test tools took 40 of its 50 seconds."""
    extras = PROJECT["optional-dependencies"]
    imported = module_level_imports(ROOT / "examples/import_airports.py")
    needed = imported - sys.stdlib_module_names - {"microbatch"}
    assert {Requirement(line).name for line in extras["examples"]} == needed
    assert set(extras["examples"]) <= set(extras["dev"])


def test_no_requirement_has_an_upper_cap_without_need():
    """A cap keeps users from taking the fixes of others."""
    assert [line for line in PROJECT["dependencies"] if "<" in line or "==" in line] == []
    assert all(">=" in line for line in PROJECT["dependencies"])


def test_the_package_says_that_it_is_typed():
    """Without the marker type checkers ignore every annotation (PEP 561)."""
    assert (PACKAGE / "py.typed").is_file()


def test_what_is_no_python_is_in_the_wheel_too(tmp_path, monkeypatch):
    """The page's templates, style sheet and script are files that nothing imports."""
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / buildapi.build_wheel(str(tmp_path))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("microbatch/")}
    files = {
        path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert {
        "microbatch/http/_page/templates/layout.html",
        "microbatch/http/_page/static/page.js",
    } <= packed


def is_guarded(node: ast.AST) -> bool:
    """Whether what stands in this statement is imported only where it exists."""
    match node:
        case ast.If(test=test):
            return "sys.platform" in ast.unparse(test) or "TYPE_CHECKING" in ast.unparse(test)
        case ast.Try(handlers=handlers):
            return any(h.type and "ImportError" in ast.unparse(h.type) for h in handlers)
    return False


def module_level_imports(path: Path) -> set[str]:
    """Return the top-level packages that importing this file needs, on every platform.

    What stands under ``if sys.platform ...``, ``if TYPE_CHECKING`` or ``try: ... except ImportError`` is not needed.
    """
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        elif not isinstance(node, FUNCTIONS) and not is_guarded(node):
            pending += ast.iter_child_nodes(node)
    return found


MODULE = """
import os.path, fcntl
from . import grp
class A:
    from pwd import x
try:
    from syslog import x
finally:
    pass
if os.name:
    import tty
else:
    import nis
# not needed:
def f():
    import termios
try:
    import crypt
except ImportError:
    pass
if sys.platform == "win32":
    import msvcrt
else:
    import spwd
if TYPE_CHECKING:
    import pty
"""


def test_the_check_of_imports_sees_what_it_should(tmp_path):
    """The next tests are worth what this helper sees."""
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    assert module_level_imports(path) == {"os", "fcntl", "pwd", "syslog", "tty", "nis"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_posix_only_is_imported_at_module_level(path):
    """Untested on Windows is one thing, impossible to import there another."""
    assert module_level_imports(path) & POSIX_ONLY == set()


def test_importing_microbatch_imports_nothing_it_does_not_need():
    """The batcher costs its users neither msgspec nor a database driver at start-up, nor the other loop."""
    code = "import sys, microbatch; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "anyio" in loaded
    assert loaded & {"msgspec", "aiosqlite", "sqlite3", "trio", "uvloop", "numpy"} == set()
