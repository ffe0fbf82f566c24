"""``mitoseg train|predict|evaluate ...``: choose the command, and import only that one."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import mitoseg
from mitoseg.control_groups import usable_cores

COMMANDS = {
    "train": "train a network and score it on the held-out volume",
    "predict": "write the mitochondria of a volume, with a trained network",
    "evaluate": "score a result against labels",
    "measure": "a table of what each mitochondrion of a volume measures",
    "benchmark": "compare methods on the same voxels: the abstract's table",
    "ensemble": "make one checkpoint of several",
    "view": "look at a run's volumes in a browser",
    "export": "write a trained network as safetensors, ONNX or a bioimage.io package",
}
SPINS = "4000"
"""Turns, 0.05 ms or so, that a thread waits for the others of OpenMP before it sleeps.

By default it waits for some milliseconds: where other work shares the cores, those that it needs.
"""
POSITIONAL = {"view": "run"}
"""Commands of which one word may come without its key, and that key."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; default: those of ``sys.argv``.

    Returns:
        The exit code, unless the command leaves with one itself.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:])
        return 0
    if words and words[0] == "--version":
        print(f"mitoseg {mitoseg.__version__}")
        return 0
    if words and words[0] in {"--help", "-h"}:
        print(usage())
        return 0
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
    print(f"error: no such command: {words[0]!r}; {hint}", file=sys.stderr)
    return 2


def usage() -> str:
    """What ``mitoseg --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    head = ["usage: mitoseg COMMAND [key=value ...]", "", "commands:"]
    return "\n".join([*head, *lines, "", "mitoseg COMMAND --help lists its options."])


def run_command(name: str, words: Sequence[str] | None = None) -> None:
    """Run one command by its name; its module, and torch with it, is imported when the config stands.

    Args:
        name: A key of `COMMANDS`.
        words: Its ``key=value`` words; default: those of ``sys.argv``.

    Raises:
        SystemExit: The command failed.
    """
    from mitoseg.cli.launch import launch

    words = sys.argv[1:] if words is None else words
    sys.argv = [sys.argv[0], *with_keys(name, words)]
    launch(name, _Command(name))


def with_keys(name: str, words: Sequence[str]) -> list[str]:
    """The words of a command, the first that stands alone with its key.

    >>> with_keys("view", ["my run", "port=8080", "--help"]), with_keys("train", ["a"])
    (['run=my run', 'port=8080', '--help'], ['a'])
    """
    key, given = POSITIONAL.get(name), list(words)
    for place, word in enumerate(given if key else ()):
        if not word.startswith("-") and ("=" not in word or Path(word).exists()):
            given[place] = f"{key}={word}"
            break  # a second one is a mistake, which Hydra tells
    return given


class _Command:
    """``mitoseg.cli.<name>.run``, imported when called (a class, since the workers of a sweep must pickle it)."""

    def __init__(self, name: str) -> None:
        self.__module__ = f"mitoseg.cli.{name}"
        self.__name__ = self.__qualname__ = "run"

    def __call__(self, cfg: object) -> float | None:
        from importlib import import_module

        from mitoseg.cli.console import waiting

        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # read once, when torch is loaded
            os.environ["GOMP_SPINCOUNT"] = SPINS
        with waiting("loading torch and other libraries"):
            module = import_module(self.__module__)
        torch, cores = sys.modules.get("torch"), usable_cores()
        if torch is not None and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
            torch.set_num_threads(cores)
        result: float | None = module.run(cfg)
        return result
