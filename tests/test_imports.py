"""Who may import whom: the house's rules (CONTRIBUTING.md), by reading the code and by starting fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

FRAMEWORKS = {"mlx", "torch", "diffusers", "transformers", "PySide6"}
FOLDERS = {"mlxldm": "mlxldm", "app": "mlxldm_app", "convert": "mlxldm_convert"}
DOORS = {"mlxldm.cli", "mlxldm.worker"}  # the two that may reach the converter, lazily


@dataclass(frozen=True)
class Import:
    """`by` imports `what`; `late` inside a function; `typing` under `if TYPE_CHECKING`."""

    by: str
    what: str
    late: bool
    typing: bool


def imports() -> list[Import]:
    """Every import in the library, the app and the converter, by the names they are installed under."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            inside = parts[:-1]  # the package that relative imports start from
            found += [Import(name, *seen) for seen in _walk(ast.parse(path.read_text("utf-8")), inside, False, False)]
    return found


def _walk(node: ast.AST, inside: list[str], late: bool, typing: bool):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = inside[: len(inside) - child.level + 1] if child.level else []
            base = base + (child.module.split(".") if child.module else [])
            for alias in child.names:
                yield ".".join([*base, alias.name]), late, typing
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _walk(ast.Module([part], []), inside, late, True)
            for part in child.orelse:
                yield from _walk(ast.Module([part], []), inside, late, typing)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, inside, late or function, typing)


def top(name: str) -> str:
    return name.partition(".")[0]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


ALL = imports()


def test_the_reading_finds_what_is_there():
    """Otherwise every rule below would hold by finding nothing."""
    assert any(i.by == "mlxldm.backend" and within(i.what, "mlxldm.on_mlx") and i.late for i in ALL)
    assert any(i.by == "mlxldm.cli" and within(i.what, "mlxldm_convert") and i.late for i in ALL)
    assert any(i.by == "mlxldm.job" and i.what == "mlxldm.errors.UserError" and not i.late for i in ALL)


def test_job_errors_and_awake_need_the_standard_library_only():
    for i in ALL:
        if i.by in ("mlxldm.job", "mlxldm.errors", "mlxldm.awake", "mlxldm.process_info"):
            own = within(i.what, "mlxldm.errors") or within(i.what, "mlxldm.process_info")
            assert top(i.what) in sys.stdlib_module_names or own, i


def test_the_app_knows_the_job_how_to_stay_awake_and_qt_and_nothing_else_of_ours():
    for i in ALL:
        if top(i.by) == "mlxldm_app":
            free = ("mlxldm_app", "mlxldm.job", "mlxldm.awake", "mlxldm.__version__")
            ours = any(within(i.what, name) for name in free)
            own = ours or top(i.what) == "PySide6"
            assert own or top(i.what) in sys.stdlib_module_names, i


def test_frameworks_stay_inside_their_backends():
    for i in ALL:
        if top(i.what) == "mlx":
            assert within(i.by, "mlxldm.on_mlx"), i
        if top(i.what) in ("torch", "diffusers", "transformers"):
            assert within(i.by, "mlxldm.on_torch"), i
        if top(i.what) == "PySide6":
            assert within(i.by, "mlxldm_app"), i


def test_only_backend_imports_the_backends_and_only_when_asked():
    for i in ALL:
        for package in ("mlxldm.on_mlx", "mlxldm.on_torch"):
            if within(i.what, package) and not within(i.by, package):
                assert i.by == "mlxldm.backend" and (i.late or i.typing), i


def test_the_two_backends_never_meet():
    for i in ALL:
        assert not (within(i.by, "mlxldm.on_mlx") and within(i.what, "mlxldm.on_torch")), i
        assert not (within(i.by, "mlxldm.on_torch") and within(i.what, "mlxldm.on_mlx")), i


def test_the_library_reaches_the_converter_only_through_its_doors_and_late():
    for i in ALL:
        if top(i.by) == "mlxldm" and top(i.what) in ("mlxldm_convert", "mlxldm_app", "convert", "app"):
            assert i.by in DOORS and i.late, i


def test_nothing_imports_the_doors():
    for i in ALL:
        for door in DOORS:
            assert not within(i.what, door) or i.by in DOORS, i


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.splitlines()[-1].split())


LIGHT = ["mlxldm", "mlxldm.cli", "mlxldm.job", "mlxldm.errors", "mlxldm.backend", "mlxldm.terminal"]
NUMERIC = sorted(
    f"mlxldm.{path.stem}" for path in (ROOT / "mlxldm").glob("*.py") if path.stem not in ("__init__", "__main__")
)


def test_the_package_and_the_command_line_load_no_framework_and_no_numpy():
    for module in LIGHT:
        assert not loaded(f"import {module}") & (FRAMEWORKS | {"numpy", "PIL", "huggingface_hub"}), module


def test_no_module_of_the_library_loads_a_framework():
    assert {"mlxldm.samplers", "mlxldm.generate", "mlxldm.picture"} <= set(NUMERIC)
    assert not loaded("import mlxldm_convert, " + ", ".join(NUMERIC)) & FRAMEWORKS


def test_the_app_loads_no_numerics():
    assert not loaded("import mlxldm_app, mlxldm_app.__main__") & (FRAMEWORKS | {"numpy", "PIL"})


def test_help_loads_nothing_heavy():
    code = "import mlxldm.cli\ntry: mlxldm.cli.main(['generate', '--help'])\nexcept SystemExit: pass"
    assert not loaded(code) & (FRAMEWORKS | {"numpy", "PIL", "huggingface_hub"})


def test_generate_stays_the_function_when_its_file_is_imported():
    """Importing `mlxldm.generate` would otherwise put the module where the function was."""
    loaded("import mlxldm.generate, mlxldm; from mlxldm import generate; assert callable(generate)")
    loaded("import mlxldm; import mlxldm.generate; assert callable(mlxldm.generate)")


@pytest.mark.parametrize(("command", "limit"), [(["-c", "import mlxldm"], 0.1), (["-m", "mlxldm.cli", "--help"], 0.3)])
def test_starting_is_quick(command: list[str], limit: float):
    """In seconds of processor time, so that a busy machine does not matter; the best of five.

    For the import, without what an interpreter takes that does nothing; --help as a whole.
    """
    resource = pytest.importorskip("resource")

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def best(arguments: list[str]) -> float:
        times = []
        for _ in range(5):
            before = spent()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
            times.append(spent() - before)
        return min(times)

    assert best(command) - (best(["-c", ""]) if command[0] == "-c" else 0) <= limit


def test_every_file_is_packaged():
    """A new package that pyproject.toml does not name would be missing from the wheel, and only there."""
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed, data = set(build["packages"]), build["package-data"]
    for folder, package in FOLDERS.items():
        if package in data:  # whatever is no program
            found = {path for pattern in data[package] for path in (ROOT / folder).glob(pattern)}
            others = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
            assert {path for path in others if path.suffix != ".py"} <= found
        for path in (ROOT / folder).rglob("*.py"):
            inside = Path(package, *path.relative_to(ROOT / folder).parts[:-1])
            assert ".".join(inside.parts) in listed, path
