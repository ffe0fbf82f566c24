"""Every command that the README and the docs print is one that Hydra accepts, and names what is there."""

import re
import shlex
import shutil
import subprocess

import pytest
from hydra import compose, initialize_config_dir
from pages import PAGES, ROOT, command_lines, commands, files, our_words, write_files

from mitoseg.arguments import split_words
from mitoseg.cli.launch import default_config_dir, prepare_words, with_keys

PRINTED = [
    pytest.param(page, words, id=f"{page.name}: {' '.join(words)[:70]}") for page in PAGES for words in commands(page)
]


@pytest.mark.parametrize(("page", "words"), PRINTED)
def test_command(page, words, tmp_path):
    ours = our_words(words)
    if ours is None:
        known = ("make", "python", ".venv/bin/python", "pip", "tensorboard", "git", "cd")
        assert words[0] in known
        if words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert words[1] in targets
        elif len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file() or words[1] in files(page)
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
    if "--config-dir" in options:
        write_files(page, tmp_path)
        folder = tmp_path / options[options.index("--config-dir") + 1]
        quoted.append(f"hydra.searchpath=['{folder.as_uri()}']")
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        assert compose(name, [*quoted, "hydra.mode=RUN"])


def test_there_are_commands():
    assert len(PRINTED) >= 150
    assert all(list(commands(ROOT / name)) for name in ("README.md", "docs/MICROSCOPIST.md", "docs/DEVELOPER.md"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_pass_on_the_words_as_they_stand(shell, tmp_path):
    """Neither expands a bracket, a brace or a star of a command that is typed as it is printed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    lines = [line for page in PAGES for line in command_lines(page) if shlex.split(line, comments=True)]
    script = ["setopt interactivecomments" if shell == "zsh" else "", """words() { printf '%s\\n' "$@" END; }"""]
    script += [f"words {line}" for line in lines]
    done = subprocess.run([shell], input="\n".join(script), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [word for line in lines for word in [*shlex.split(line, comments=True), "END"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"\[[\w/]+\.md\]\(", text) == [], "a link is named by its page's title"
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
