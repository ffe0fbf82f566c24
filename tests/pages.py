"""The README and the pages of docs/: the commands and the files that they print."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = "train|finetune|predict|evaluate|measure|benchmark|ensemble|view"
_SHELL = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)
_FILE = re.compile(r'```\w+ title="([^"]+)"\n(.*?)```', re.DOTALL)


def command_lines(page):
    """The lines of a page's shell blocks without prompts, continued lines joined."""
    for block in _SHELL.findall(page.read_text(encoding="utf-8")):
        yield from (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())


def commands(page):
    """The commands of a page as words, without comments."""
    return filter(None, (shlex.split(line, comments=True) for line in command_lines(page)))


def files(page):
    """The files that a page prints, by the name above each."""
    return dict(_FILE.findall(page.read_text(encoding="utf-8")))


def write_files(page, folder):
    """Write the files of a page where it says."""
    for name, text in files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def our_words(words):
    """Config name and the words after the command, or None if it is not a command of ours."""
    match words:
        case [python, script, *rest] if python.endswith("python") and re.fullmatch(rf"({SCRIPTS}).py", script):
            return script.removesuffix(".py"), rest
        case [python, "-m", "mitoseg.export", *rest] if python.endswith("python"):
            return "export", rest
        case ["mitoseg", name, *rest]:
            return name, rest
    return None
