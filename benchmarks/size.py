"""How much code there is to read: files, lines, and what the lines are, of the package or of the tests.

python benchmarks/size.py [FOLDER ...]
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

COLUMNS = ("files", "lines", "code", "imports", "docstrings", "comments", "blank")


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings take."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = (node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None)
    return {line for node in owners for line in _lines(node.body[0])}


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def count(path: Path) -> Counter[str]:
    """Lines of a Python file by what they are; each line counts once."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstrings = docstring_lines(tree)
    imports = {n for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for n in _lines(node)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    counts = Counter(files=1)
    for number, line in enumerate(text.splitlines(), 1):
        kind = "docstrings" if number in docstrings else "imports" if number in imports else "code"
        if not line.strip() and kind == "code":
            kind = "blank"
        elif number in comments and line.lstrip().startswith("#"):
            kind = "comments"
        counts.update([kind, "lines"])
    return counts


def tracked(folder: str) -> list[Path]:
    """The Python files of a folder that git knows, in order of their names."""
    listed = subprocess.run(["git", "ls-files", "-z", "--", folder], capture_output=True, check=True, text=True)
    return sorted(Path(name) for name in listed.stdout.split("\0") if name.endswith(".py") and Path(name).exists())


def main(folders: list[str]) -> None:
    """Print one row for each part of the named folders, and one for each folder as a whole."""
    for folder in folders:
        parts: dict[str, Counter[str]] = {}
        for path in tracked(folder):
            inner = path.relative_to(folder).parts
            parts.setdefault(inner[0] + "/" if len(inner) > 1 else "(itself)", Counter()).update(count(path))
        table = Table(*(Column(name, no_wrap=True) for name in (folder, *COLUMNS, "imports %")))
        whole = sum(parts.values(), Counter[str]())
        for name, counts in [*sorted(parts.items(), key=lambda item: -item[1]["lines"]), ("together", whole)]:
            share = 100 * counts["imports"] / max(counts["lines"], 1)
            table.add_row(name, *(f"{counts[column]:,}" for column in COLUMNS), f"{share:.1f}")
        Console(width=100).print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or ["mitoseg", "tests"])
