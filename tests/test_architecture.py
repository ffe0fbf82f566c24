"""How the code is cut: who imports whom, how long a file and a function may be, and what must not be in a file."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mitoseg"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))

BASE = {"", "arguments", "control_groups", "errors", "geometry", "processes", "progress", "provenance"}
BASE |= {"storage", "tables"}  # "" is mitoseg itself: its version
LIBRARIES_ONLY = {"errors", "geometry"}
EVERYTHING = {path.stem for path in PACKAGE.iterdir() if path.name not in {"__init__.py", "__pycache__"}} | BASE
MAY_IMPORT = {
    "__main__": {"cli"},
    "errors": set(),
    "geometry": {"errors"},
    "arguments": {"errors", "storage"},
    "control_groups": {"errors"},
    "processes": {"storage"},
    "progress": set(),
    "storage": {"errors", "geometry"},
    "tables": {"errors", "storage"},
    "provenance": {"", "errors"},
    "volumes": BASE,
    "engines": LIBRARIES_ONLY | {"control_groups", "storage"},
    "networks": LIBRARIES_ONLY,
    "metrics": LIBRARIES_ONLY,
    "datasets": BASE | {"volumes"},
    "segmentation": BASE | {"engines", "volumes"},
    "inference": BASE | {"metrics", "networks", "volumes"},
    "sampling": BASE | {"datasets", "volumes"},
    "training": BASE | {"datasets", "inference", "metrics", "networks", "volumes"},
    "classical": BASE | {"segmentation", "volumes"},
    "evaluation": BASE | {"engines", "metrics", "segmentation", "volumes"},
    "export": BASE | {"inference", "metrics", "networks", "volumes"},
    "benchmark": EVERYTHING - {"cli", "viewers", "workflows"},
    "workflows": EVERYTHING - {"cli", "viewers"},
    "viewers": EVERYTHING - {"cli"},
    "cli": EVERYTHING,
}
WITHOUT_TORCH = {"segmentation"}


def part_of(path):
    """The part of the package that a file belongs to, such as ``volumes``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Full names of the modules that a file imports, wherever in it."""
    package = ["mitoseg", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            yield name
            if name == "mitoseg":
                yield from (f"mitoseg.{alias.name}" for alias in node.names if alias.name in EVERYTHING)
            folder = ROOT / name.replace(".", "/")
            yield from (f"{name}.{alias.name}" for alias in node.names if (folder / f"{alias.name}.py").is_file())


def forbidden(path):
    """Imports of a file that its part may not have."""
    part = part_of(path)
    if part == "__init__":  # which names the interface for type checkers, and imports it when it is used
        known = ("mitoseg.errors", "mitoseg.segmentation", "mitoseg.workflows.interface")
        return [name for name in imports(path) if name.startswith("mitoseg") and name not in known]
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "mitoseg" and rest.split(".")[0] not in {*MAY_IMPORT[part], part}:
            yield name
        if first == "torch" and part in WITHOUT_TORCH:
            yield name


def test_imports_run_one_way():
    assert {part_of(path) for path in MODULES} <= {*MAY_IMPORT, "__init__"}, "a new part: say above what it may import"
    found = {str(path.relative_to(ROOT)): names for path in MODULES if (names := list(forbidden(path) or []))}
    assert found == {}


def test_no_modules_import_in_a_circle():
    names = {".".join(["mitoseg", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in MODULES}
    modules = {name: path for name, path in names.items() if not name.endswith(("__init__", "__main__"))}
    graph = {name: {other for other in imports(path) if other in modules} for name, path in modules.items()}
    tuple(TopologicalSorter(graph).static_order())  # type-only imports count as well; raises CycleError


def long_functions(text):
    """Names of the functions of a file whose bodies are longer than 60 lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and (body[-1].end_lineno or 0) - body[0].lineno >= 60:
                yield node.name


def test_files_and_functions_are_short():
    found = {}
    for path in [*MODULES, *SCRIPTS]:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 600 or list(long_functions(text)):
            found[str(path.relative_to(ROOT))] = text.count("\n"), list(long_functions(text))
    assert found == {}


def test_no_module_is_called_utils_and_scripts_only_call_an_entry_point():
    assert [path for path in MODULES if "util" in path.stem] == []
    assert {path.name for path in SCRIPTS} >= {"train.py", "predict.py", "evaluate.py"}
    assert all(path.read_text(encoding="utf-8").count("\n") < 10 for path in SCRIPTS)


def tracked_files():
    """Files of the repository that are text; skips outside a clone."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(words, capture_output=True, check=True, encoding="utf-8").stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode("utf-8", errors="replace")


def test_no_file_names_a_machine_or_a_registry():
    hosts = ["pypi" + r"\.(org|python)", "python" + "hosted", "anaconda" + r"\.org", "download.pytorch" + r"\.org"]
    pattern = re.compile("|".join([r"(?<![\w.])/" + r"(work|home|root|Users)/\w", *hosts]))
    found = {name: match[0] for name, text in tracked_files() if (match := pattern.search(text))}
    assert found == {}


def test_the_import_rules_can_fail(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "segmentation").mkdir()
    path = tmp_path / "segmentation" / "bad.py"
    path.write_text("from mitoseg import networks\nimport torch.nn\nfrom ..cli import main\nfrom . import other\n")
    assert set(forbidden(path)) == {"mitoseg.networks", "torch.nn", "mitoseg.cli"}
