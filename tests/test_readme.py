"""Every command that the README and the docs print is one that Hydra accepts, and names what is there."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mitoseg.cli.launch import default_config_dir, prepare_words, split_words
from mitoseg.cli.main import with_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)


def commands():
    """The lines of the shell blocks, without comments and prompts, continued lines joined."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield pytest.param(words, id=f"{page.name}: {' '.join(words)[:70]}")


def hydra_words(words):
    """Config name and the words after the command, or None if it is no command of ours."""
    match words:
        case [python, script, *rest] if python.endswith("python") and re.fullmatch(
            r"(train|predict|evaluate|measure|benchmark|ensemble|view).py", script
        ):
            return script.removesuffix(".py"), rest
        case ["mitoseg", name, *rest]:
            return name, rest
    return None


@pytest.mark.parametrize("words", list(commands()))
def test_command(words, monkeypatch, tmp_path):
    ours = hydra_words(words)
    if ours is None:
        known = ("make", "python", ".venv/bin/python", "pip", "tensorboard", "git", "cd")
        assert words[0] in known
        if words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert words[1] in targets
        elif len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file()
        return
    name, rest = ours
    assert not any(word.startswith("+") for word in rest), "an option that is not in the yaml"
    options, overrides = split_words(with_keys(name, rest))
    if any(word.startswith("resume=") for word in overrides):
        overrides = [word for word in overrides if not word.startswith("resume=")]
    sweep = bool({"-m", "--multirun"} & set(options))
    quoted = prepare_words(overrides, sweep=sweep)
    if sweep:  # Hydra's sweeper composes one job at a time; the first choice of each will do
        quoted = [re.sub(r"=(?:tag\(\w+,)?(?:interval\()?([^,\[(]+),.*", r"=\1", word) for word in quoted]
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        assert compose(name, [*quoted, "hydra.mode=RUN"])


def test_there_are_commands():
    assert len(list(commands())) >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
