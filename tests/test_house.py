"""The style as a test: what is not checked decays. Reads the sources of this repository and nothing else."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FUNCTION = 40
LONGEST_MODULE = 450
SKIPPED_FOLDERS = frozenset({"build", "dist", "node_modules", "__pycache__"})
TEXT_ENDINGS = frozenset(
    {".cfg", ".css", ".html", ".ini", ".js", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yml"}
)

# What pure modules may not import; the import contract of pyproject.toml says the same to import-linter.
IMPURE = frozenset(
    {
        "aiohttp",
        "asyncio",
        "concurrent",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "psutil",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "structlog",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "zeroconf",
    }
)
BANNED_MODULES = frozenset(["base", "common", "helpers", "manager", "misc", "shared", "types", "util", "utils"])
BANNED_NAMES = re.compile(
    r"(?i)(^|_)(util|utils|helper|helpers|manager|misc|foo|baz)(_|$)|(Manager|Helper|Util|Utils)$"
)
# What a person starts, and the in-memory network, which is public so that others can test with it.
ENTRY_POINTS = frozenset({"meshnn.__main__", "meshnn", "meshnn.net.memory"})


def sources(*folders: str) -> list[Path]:
    """Every Python file beneath the folders of this repository that are there."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)]


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, node: ast.AST | None = None) -> str:
    """File and line, as a person looks them up."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def module_name(path: Path) -> str:
    """The dotted name of a file of this repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of one file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every module that one file names in an import, wherever it stands, with its statement."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def for_types_alone(path: Path) -> set[ast.AST]:
    """The statements of one file that stand under `if TYPE_CHECKING`, and so never run."""
    guards = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def settings() -> dict[str, object]:
    """The tables of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def impure_modules() -> set[str]:
    """The modules of node that do its I/O, as the purity contract in pyproject.toml names them."""
    found = re.findall(r'"(meshnn\.node\.\w+) -> \*\*"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(found)


def tracked_text() -> Iterator[Path]:
    """Every text file a commit may hold: no virtual environment, cache or build folder."""
    for path in sorted(ROOT.iterdir()):
        if path.is_file():
            yield path
        elif not path.name.startswith(".") or path.name == ".ci":
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and not SKIPPED_FOLDERS & set(inner.relative_to(ROOT).parts):
                    yield inner


def test_functions_are_short() -> None:
    """No function of the product or its tools is longer than 40 lines, from `def` to its end."""
    long = [
        f"{place(path, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in sources("meshnn", "tools")
        for node in functions(path)
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_modules_are_short() -> None:
    """No module of the product or its tools is longer than 450 lines."""
    long = [
        f"{place(path)}: {count} lines"
        for path in sources("meshnn", "tools")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE
    ]
    assert not long, "\n".join(long)


def _undocumented(path: Path) -> Iterator[str]:
    """The places of one file that lack a docstring: the module, public classes, public functions and methods."""
    if not ast.get_docstring(tree(path)):
        yield f"{place(path)}: the module"
    waiting: list[ast.Module | ast.ClassDef] = [tree(path)]
    while waiting:
        for node in waiting.pop().body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            overload = any(getattr(one, "id", getattr(one, "attr", "")) == "overload" for one in node.decorator_list)
            if not ast.get_docstring(node) and not overload:
                yield f"{place(path, node)}: {node.name}"
            if isinstance(node, ast.ClassDef):
                waiting.append(node)


def test_everything_public_is_documented() -> None:
    """Every module, public class and public function has a docstring; so has every test, saying what it pins."""
    bare = [line for path in sources("meshnn", "tools", "tests", "examples") for line in _undocumented(path)]
    assert not bare, "\n".join(bare)


def test_no_orphan_modules() -> None:
    """Every module of the package is imported by another one, by a tool or an example, or is where a program starts."""
    files = {module_name(path): path for path in sources("meshnn")}
    scripts = settings()["project"]
    assert isinstance(scripts, dict)
    used = {target.split(":")[0] for target in scripts["scripts"].values()} | ENTRY_POINTS
    # A child process or a lazy loader names its module in a string.
    for name, path in files.items():
        named = {
            node.value
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        used |= {other for _, other in imports(path) if other != name} | (named - {name})
    used |= {name for path in sources("tools", "examples") for _, name in imports(path)}
    orphans = [name for name, path in files.items() if name not in used and path.name != "__init__.py"]
    assert not orphans, "\n".join(orphans)


def test_names_say_what_a_thing_is() -> None:
    """No module, class or function is named for nothing in particular (utils, helpers, manager, ...)."""
    vague = [place(path) for path in sources("meshnn", "tools") if path.stem in BANNED_MODULES]
    vague += [
        f"{place(path, node)}: {node.name}"
        for path in sources("meshnn", "tools")
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and BANNED_NAMES.search(node.name)
    ]
    assert not vague, "\n".join(vague)


@pytest.mark.parametrize(
    ("package", "only"), [("structlog", "meshnn.telemetry"), ("zeroconf", "meshnn.net.discovery")], ids=str
)
def test_a_library_has_one_door(package: str, only: str) -> None:
    """Only telemetry imports structlog, and only discovery imports zeroconf."""
    others = [
        place(path, node)
        for path in sources("meshnn", "tools")
        for node, name in imports(path)
        if name.split(".")[0] == package and module_name(path) != only
    ]
    assert not others, "\n".join(others)


def test_pure_modules_import_nothing_impure() -> None:
    """The compiler, the machines, the planner, the codec and the pure part of node import no I/O, time or chance."""
    exempt = impure_modules()
    guilty = [
        f"{place(path, node)}: {name}"
        for path in sources("meshnn/graph", "meshnn/cluster", "meshnn/plan", "meshnn/wire", "meshnn/node")
        if module_name(path) not in exempt
        for node, name in imports(path)
        if node not in for_types_alone(path)
        and (
            name.split(".")[0] in IMPURE
            or name.startswith(("meshnn.net", "meshnn.device", "meshnn.vision", "meshnn.telemetry"))
            or name in exempt
        )
    ]
    assert not guilty, "\n".join(guilty)


def _chance(path: Path) -> Iterator[ast.AST]:
    """Where one file draws from the state of a random module, or makes a generator without a seed."""
    doors = {"np.random", "numpy.random"} | {"random" for _, name in imports(path) if name == "random"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module in {"random", "numpy.random"}:
            yield node
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in doors:
            if node.attr not in {"Random", "Generator", "PCG64", "default_rng"}:
                yield node
        elif isinstance(node, ast.Call) and not node.args and ast.unparse(node.func).rpartition(".")[0] in doors:
            yield node


def test_chance_is_an_argument() -> None:
    """Pure modules draw from generators they are given or that have a seed: never from a module's own state."""
    guilty = [
        place(path, node)
        for path in sources("meshnn/graph", "meshnn/cluster", "meshnn/plan", "meshnn/wire", "meshnn/node")
        if module_name(path) not in impure_modules()
        for node in _chance(path)
    ]
    assert not guilty, "\n".join(guilty)


def test_tests_do_not_sleep() -> None:
    """No test waits by sleeping: `asyncio.sleep(0)` yields, everything else waits on a condition."""
    sleeps = []
    for path in sources("tests"):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if called == "sleep" and not yields:
                sleeps.append(place(path, node))
    assert not sleeps, "\n".join(sleeps)


def test_every_test_can_fail() -> None:
    """No test function is empty: each asserts, expects an error, or calls something that does."""
    empty = [
        f"{place(path, node)}: {node.name}"
        for path in sources("tests")
        for node in functions(path)
        if node.name.startswith("test_")
        and not any(isinstance(inner, (ast.Assert, ast.Call, ast.With, ast.AsyncWith)) for inner in ast.walk(node))
    ]
    assert not empty, "\n".join(empty)


def test_nothing_is_left_for_later() -> None:
    """No marker of unfinished work in any source, document or setting."""
    marker = re.compile("|".join(rf"\b{word}\b" for word in ("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")))
    left = [
        f"{place(path)[:-1]}{number}"
        for path in tracked_text()
        if path.suffix in TEXT_ENDINGS
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if marker.search(line)
    ]
    assert not left, "\n".join(left)


# Spelt in pieces, so that this file does not name them.
PLACES = re.compile(
    "|".join(
        (
            r"(?<![\w.])/wo" + r"rk/",
            r"(?<![\w.])/ro" + r"ot/",
            r"/ho" + r"me/[a-z]",
            r"py" + r"pi\.org|python" + r"hosted|--(extra-)?index" + r"-url [^-]|artif" + r"actory",
        )
    )
)


def test_no_machine_is_named() -> None:
    """No tracked file names a path of somebody's machine or the host of a package registry."""
    named = [
        f"{place(path)[:-1]}{number}: {found.group()}"
        for path in tracked_text()
        if path.suffix in TEXT_ENDINGS or path.name in {"Makefile", "run", ".gitignore"}
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (found := PLACES.search(line))
    ]
    assert not named, "\n".join(named)


def test_locks_are_hashed() -> None:
    """Every pinned requirement of both locks carries a hash, and neither lock names where it came from."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        entries = re.findall(r"(?m)^[a-z0-9][^\s=]*==[^\\]*\\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text)
        assert len(entries) == len(re.findall(r"(?m)^[a-z0-9]", text)) > 20, name
        assert "://" not in text, name


def test_what_is_declared_is_locked() -> None:
    """Every dependency of pyproject.toml, development group included, is in the lock that set-up installs."""
    project, groups = settings()["project"], settings()["dependency-groups"]
    assert isinstance(project, dict)
    assert isinstance(groups, dict)
    declared = {re.split(r"[^A-Za-z0-9-]", one)[0].lower() for one in [*project["dependencies"], *groups["dev"]]}
    locked = set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")))
    assert declared <= locked, declared - locked


def test_imports_are_declared() -> None:
    """The package imports nothing that pyproject.toml does not declare."""
    project = settings()["project"]
    assert isinstance(project, dict)
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    declared = {
        re.split(r"[^A-Za-z0-9-]", one)[0].lower().replace("-", "_") for one in [*project["dependencies"], *extras]
    }
    declared = {"pil" if one == "pillow" else one for one in declared} | {"meshnn"}
    strange = [
        f"{place(path, node)}: {name}"
        for path in sources("meshnn")
        for node, name in imports(path)
        if name.split(".")[0].lower() not in declared and name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not strange, "\n".join(strange)
