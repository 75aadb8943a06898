"""The rules of the house hold, and breaking one is noticed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
STOREYS = ("search", "workers", "service")
SOURCES = [path for storey in STOREYS for path in sorted((HOUSE / storey).rglob("*.py"))]


def lint(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(
        [*command, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The three packages and their contracts, to be broken."""
    for storey in STOREYS:
        shutil.copytree(HOUSE / storey, tmp_path / storey, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOUSE / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.timeout(30)
def test_the_contracts_hold() -> None:
    status, text = lint(HOUSE)
    assert status == 0, text


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("search/space.py", "import ray", "search knows no web, no Ray"),
        ("search/space.py", "import torch", "load neither torch nor Ray"),
        ("search/rungs.py", "import fastapi", "search knows no web, no Ray"),
        ("search/recipe.py", "import sqlalchemy", "search knows no web, no Ray"),
        ("search/rungs.py", "from workers import ports", "Three storeys"),
        ("search/budget.py", "from search import space", "Storeys inside search"),
        ("search/errors.py", "from search import spec", "No circles"),
        ("search/strategies/uniform.py", "from search.costs import counted", "Kinds of plugin"),
        ("search/datasets/digits.py", "from search.teachers import small", "Kinds of plugin"),
        ("search/novelty.py", "", "Storeys inside search"),
        ("workers/driver.py", "import sqlalchemy", "workers know no web, no database"),
        ("workers/ports.py", "import fastapi", "workers know no web, no database"),
        ("workers/dispatcher.py", "from service import settings", "Three storeys"),
        ("workers/scoring.py", "import ray", "Ray is imported under workers.backends.ray only"),
        ("workers/ports.py", "import torch", "load neither torch nor Ray"),
        ("workers/ports.py", "from workers import driver", "No circles"),
        ("workers/backends/base.py", "from workers import sessions", "Storeys inside workers"),
        ("service/app.py", "import torch", "load neither torch nor Ray"),
        ("service/app.py", "from search import training", "load neither torch nor Ray"),
        ("service/client.py", "from workers import driver", "load neither torch nor Ray"),
        ("service/app.py", "import sqlalchemy", "SQL is spoken under service.store only"),
        ("service/settings.py", "from service import terminal", "Storeys inside service"),
        ("service/serve.py", "import ray", "Ray is imported under workers.backends.ray only"),
    ],
)
def test_a_forbidden_import_breaks_the_contract_that_forbids_it(
    copy: Path, file: str, line: str, contract: str
) -> None:
    path = copy / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{text}\n\ndef _added():\n    {line or 'pass'}\n", encoding="utf-8")
    status, report = lint(copy)
    assert status == 1
    broken = re.findall(r"^(.+?) BROKEN", report, re.MULTILINE)
    assert any(contract in name for name in broken), report


def test_the_names_of_the_packages_resolve_inside_this_checkout() -> None:
    for storey in STOREYS:
        spec = find_spec(storey)
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).is_relative_to(HOUSE)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "modules",
    [
        "service.app, service.routes.jobs, service.serve",
        "service.client",
        "service.cli",
        "search.spec, search.space, search.trial, search.budget, search.catalog, search.plugins, workers.ports",
    ],
)
def test_what_answers_people_loads_neither_torch_nor_ray(modules: str) -> None:
    program = f"import json, sys, {modules}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "torchvision", "ray", "onnx", "sklearn"}


FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "eval",
    "exec",
}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "joblib", "marshal", "shelve", "dill"}


def unsafe(tree: ast.AST) -> list[tuple[int, str]]:
    """Lines that could run what they read, with what stands there."""
    found: list[tuple[int, str]] = []
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    safe |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and safe & {ast.unparse(base) for base in node.bases}
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, n) for n in names if node.module in FORBIDDEN_MODULES or n in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            allows = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            given = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg == "Loader")]
            if name == "yaml.load" and given and ast.unparse(given[0]) in safe:
                continue
            if name in FORBIDDEN_CALLS or allows:
                found.append((node.lineno, name))
    return found


def test_nothing_that_is_read_can_run() -> None:
    found = {
        f"{path.relative_to(HOUSE)}:{line}: {what}"
        for path in SOURCES
        for line, what in unsafe(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Mine(yaml.Loader): pass\nyaml.load(text, Mine)",
        "joblib.load(path)",
        "eval(text)",
    ],
)
def test_the_check_for_unsafe_reading_sees(line: str) -> None:
    assert unsafe(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "class Mine(yaml.SafeLoader): pass\nyaml.load(text, Mine)",
        "load_file(path)",
        "model.eval()",
    ],
)
def test_the_check_for_unsafe_reading_lets_pass(line: str) -> None:
    assert not unsafe(ast.parse(line))


def test_every_package_is_marked_typed_and_has_an_empty_door() -> None:
    """
    A name is imported from the file that defines it: `__init__.py` holds a docstring at most. `search.surgery`, which
    is used on its own in notebooks, has a face: it names what its files define.
    """
    face = HOUSE / "search" / "surgery" / "__init__.py"
    for node in ast.parse(face.read_text(encoding="utf-8")).body[1:]:
        assert isinstance(node, (ast.ImportFrom, ast.Assign)), ast.unparse(node)
    for storey in STOREYS:
        assert (HOUSE / storey / "py.typed").exists()
        for door in (HOUSE / storey).rglob("__init__.py"):
            body = ast.parse(door.read_text(encoding="utf-8")).body if door != face else []
            assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), door
        for folder in {path.parent for path in (HOUSE / storey).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), folder


def test_docker_and_deploy_hold_no_python() -> None:
    """They share a folder level with the packages; `docker` is the name of a package of others."""
    assert not [*(HOUSE / "docker").rglob("*.py"), *(HOUSE / "deploy").rglob("*.py")]


def committed() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=HOUSE, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := HOUSE / name).is_file()]


HOSTS = re.compile(rb"pypi\.org|pythonhosted|index-url|find-links|docker\.io/|registry\.npmjs")
PLACES = re.compile(rb"(?<![\w./-])/(?:home|root|Users|work|mnt|opt/pypi)/[\w.-]+")


def test_committed_files_name_no_registry_and_no_place_of_one_machine() -> None:
    found = [
        f"{path.relative_to(HOUSE)}: {hit.group().decode()}"
        for path in committed()
        if path != Path(__file__) and b"\0" not in (data := path.read_bytes())
        for hit in [*HOSTS.finditer(data), *PLACES.finditer(data)]
    ]
    assert not found


def test_the_readme_names_both_commands() -> None:
    text = (HOUSE / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_make_alone_lists_every_target_with_one_line() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=HOUSE, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    text = (HOUSE / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert listed == set(phony.split())
    assert all(len(line.split(maxsplit=2)) == 3 for line in done.stdout.splitlines())


def test_every_dependency_is_pinned_exactly() -> None:
    lines = (HOUSE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    text = (HOUSE / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(r'^    "([A-Za-z0-9_.-]+)', text.partition("[project.scripts]")[0], re.MULTILINE)
    missing = {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} - pinned
    assert not missing
