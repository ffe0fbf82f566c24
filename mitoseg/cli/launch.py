"""From a command line to a run: quoting, Hydra, the run's folder, errors in one line, exit codes.

0 done; 1 the user's mistake, or a bug with its traceback; 2 a command line that cannot be read; 130 interrupted
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial, wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

import mitoseg
from mitoseg.arguments import (
    as_typed,
    escape,
    key_of,
    literal,
    quote_override,
    refuse_targets,
    resume_overrides,
    split_words,
)
from mitoseg.cli.console import nearest, tell, unknown_choice, unknown_option, user_message, warnings_as_lines
from mitoseg.cli.ranks import RUN_DIR, job_arguments, job_environment, outside_job, pin_common_folder, program
from mitoseg.cli.sweeps.jobs import (
    Sweep,
    conclude,
    find_sweep,
    jobs_end_first,
    pin_sweep,
    plan_sweep,
    run_job,
)
from mitoseg.cli.sweeps.optuna_sweeper import missing_plugin, register_sweeper
from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError
from mitoseg.processes import follow_parent, is_main_process
from mitoseg.progress import waiting
from mitoseg.storage import held
from mitoseg.workflows.options import default_config_dir, typed

Run = Callable[[DictConfig], float | None]
"""A command: it takes its config; a number it returns is what a search maximises."""
COMMANDS = {
    "train": "train a network and score it on the held-out volume",
    "finetune": "fine-tune a model on a few annotated slices, and score it on tissue it has not seen",
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
"""Commands of which one argument may come without its key, and that key."""
SHORT = {"train": {"voxel_size": "data.voxel_size"}}
"""Keys of the other commands that a command has elsewhere."""


def launch(config_name: str, run: Run, *, config_dir: Path | None = None) -> None:
    """Run a command of a config with the arguments of ``sys.argv``; leave with an exit code unless it is done."""
    argv_before, path_before = sys.argv, list(sys.path)
    full_error_before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back to us instead of being printed by Hydra
    try:
        with warnings_as_lines():
            code = _launch(config_name, run, config_dir or default_config_dir())
    finally:
        sys.argv, sys.path[:] = argv_before, path_before
        if full_error_before is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if code:
        sys.exit(code)


def run_dir() -> Path:
    """The absolute folder of the run that is going on, the same on every rank; `ValueError` outside of one."""
    return Path(HydraConfig.get().runtime.output_dir)


class RunFolder(Callback):
    """Makes a run's folder before Hydra does, under a name that no other run has (a callback of Hydra's)."""

    made: Path | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 (Hydra's signature)
        """Number the folder, ``12-00-00_2``, if there is one of this second; a folder that the user names stays."""
        given = any(key_of(word) == "hydra.run.dir" for word in config.hydra.overrides.hydra)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # names speak of ${hydra:...}
        try:
            folder = Path(config.hydra.run.dir)
        finally:
            HydraConfig.instance().cfg = before
        if given or folder == Path():
            return
        with suppress(OSError), read_write(config.hydra.run):  # Hydra's own attempt raises the error again
            RunFolder.made = claim(folder)
            config.hydra.run.dir = escape(RunFolder.made.as_posix())


def claim(folder: Path) -> Path:
    """Make a folder that was not there before, ``folder`` or else ``folder_2``, ``folder_3`` ...; which one it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        with suppress(FileExistsError):
            free.mkdir()
            break
    return free


def _remove_unused_folder() -> None:
    """Remove the folder of a run that failed before it wrote anything, so that the corrected command gets its name."""
    made = RunFolder.made
    files = [path for path in made.rglob("*") if not path.is_dir()] if made is not None else []
    ours = [path for path in files if path.parent.name == ".hydra" or path.suffix == ".log" or path.name == ".lock"]
    if made is None or files != ours:
        return
    for handler in list(logging.root.handlers):  # which would open the log again, in a folder that is gone
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == made.absolute():
            logging.root.removeHandler(handler)
            handler.close()
    shutil.rmtree(made, ignore_errors=True)


def _launch(config_name: str, run: Run, config_dir: Path) -> int:
    report = follow_parent()
    RunFolder.made = None
    words: list[str] = []
    sweep: Sweep | None = None
    config_dirs = [config_dir]
    try:
        try:
            os.getcwd()
        except FileNotFoundError as error:
            raise UserError("the current folder is gone", None, "change to one that exists") from error
        options, words = split_words(sys.argv[1:])
        words, options, sweeps = find_sweep(list(map(quote_override, words)), options)
        known = get_args_parser().parse_args(options)
        if known.config_dir:  # a class of one's own may lie beside its yaml; engines' processes inherit the path
            sys.path.insert(0, os.path.abspath(known.config_dir))
            refuse_shadows(Path(known.config_path or config_dir), Path(known.config_dir))
        config_dirs = [Path(known.config_path or config_dir), *([Path(known.config_dir)] if known.config_dir else [])]
        judge = partial(refuse_targets, typed=words, config_dirs=config_dirs)
        words = prepare_words(words, sweep=sweeps, command=config_name, config_dirs=config_dirs)
        sys.argv = [sys.argv[0], *words, *options]
        chosen = {name: getattr(known, name) for name in ("config_path", "config_name", "config_dir")}
        kept = ((f"--{name.replace('_', '-')}", value) for name, value in chosen.items() if value is not None)
        command = [*program(run), *(word for option in kept for word in option)]  # further ranks need these options
        with ExitStack() as stack:
            if sweeps:
                planned = plan_sweep(words, command)
                busy, remedy = "another sweep is running in this folder", "wait for it, or give this sweep a name=..."
                stack.enter_context(held(planned.folder / ".lock", busy, remedy))
                sweep = planned
            score = _call_hydra(config_name, run, config_dir, command, sweep, judge)
        report(objective=score)
    except KeyboardInterrupt:
        return _say("interrupted", 130, sweep)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # how Lightning passes Ctrl-C on
            return _say("interrupted", 130, sweep)
        if sweep is not None:
            conclude(sweep)
        raise
    except Exception as error:
        line = missing_plugin(error) or unknown_choice(error, config_dirs)
        line = line or unknown_option(error, config_dir, config_name, words) or user_message(error)
        if line is None:
            traceback.print_exc()
            line = "this is a bug in mitoseg; please report it with the lines above and the command"
        report(error=line)
        return _say(f"error: {line}", 1, sweep)
    failures = conclude(sweep) if sweep else None
    return _say(f"error: {failures}", 1) if failures else 0


def refuse_shadows(config_dir: Path, own: Path) -> None:
    """Refuse a file of the user's that Hydra would ignore, since mitoseg has an option of that name."""
    for path in sorted(config_dir.rglob("*.yaml")):
        name = path.relative_to(config_dir)
        if (own / name).is_file() and not (own / name).samefile(path):
            raise UserError(f"{name} in {own} has the name of one of mitoseg's own options", None, "rename it")


def _call_hydra(
    config_name: str,
    run: Run,
    config_dir: Path,
    command: Sequence[str],
    sweep: Sweep | None,
    judge: Callable[[DictConfig], None],
) -> float | None:
    """Have Hydra read ``sys.argv`` and call the command; what it returned, None after a sweep.

    A failure is kept and raised again afterwards, because Hydra would print a line of its own.
    """
    failures: list[BaseException] = []
    results: list[float | None] = []

    @wraps(run)
    def task(cfg: DictConfig) -> None:
        if not is_main_process():
            logging.getLogger().setLevel(logging.WARNING)
        try:
            judge(cfg)
            with job_environment([*command, *job_arguments()], run_dir()):
                results.append(run(cfg))
        except Exception as error:
            failures.append(error)
            return
        if is_main_process() and run_dir() != Path.cwd():  # a command that writes nothing has no folder of its own
            print(as_typed(run_dir()), flush=True)

    main = hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)
    try:
        if sweep is None:
            main(task)()
        else:
            register_sweeper()
            with jobs_end_first(sweep):
                main(wraps(run)(partial(run_job, sweep)))()  # which a launcher's workers get pickled
    except OSError as error:  # Hydra's own: what the command itself raises is in ``failures``
        if error.errno is None:  # a config that is not there
            raise
        remedy = f"give hydra.{'run' if sweep is None else 'sweep'}.dir=FOLDER where there is room and you may write"
        raise UserError(f"the run's folder cannot be made ({error.strerror})", error.filename, remedy) from error
    if failures:
        if user_message(failures[0]) is not None:
            _remove_unused_folder()
        raise failures[0]
    return results[0] if results else None


def _say(line: str, code: int, sweep: Sweep | None = None) -> int:
    """Print the last line, after the results of a sweep that was cut short; the exit code."""
    if sweep is not None:
        conclude(sweep)
    rank = "" if is_main_process() else f"[rank {os.environ.get('LOCAL_RANK', '?')}] "
    print(rank + line, file=sys.stderr, flush=True)
    return code


def prepare_words(
    words: Sequence[str], *, sweep: bool, command: str = "train", config_dirs: Sequence[Path] = ()
) -> list[str]:
    """Overrides as Hydra is to parse them: quoted, folders pinned, those of a resumed run added."""
    quoted, config_dirs = list(map(quote_override, words)), config_dirs or [default_config_dir()]
    if sweep:
        if resume_overrides(quoted, config_dirs) != quoted:
            raise UserError("resume= continues a single run, not a sweep", None, "leave out -m")
        if outside_job() is not None and {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"} & set(os.environ):
            remedy = "run it once, without srun or torchrun"
            raise UserError("a sweep starts the ranks of its jobs itself", None, remedy)
        return pin_sweep(quoted, context=[command])
    if outside_job() is not None:
        return pin_common_folder(quoted, command)
    folder = os.environ.get(RUN_DIR)
    if folder and os.environ.get("LOCAL_RANK") not in {None, "", "0"}:  # a further rank
        quoted = [word for word in quoted if not word.startswith("hydra.run.dir=")]
        quoted.append(f"hydra.run.dir={literal(folder)}")
    return resume_overrides(quoted, config_dirs) if is_main_process() else quoted


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` follows the program's name. Returns the exit code, unless the command leaves."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:])
        return 0
    if words and words[0] == "--version":
        print(f"mitoseg {mitoseg.__version__}")
        return 0
    if not words or words[0] in {"--help", "-h"}:
        lines = [f"  {name:{max(map(len, COMMANDS))}}  {what}" for name, what in COMMANDS.items()]
        usage = ["usage: mitoseg COMMAND [key=value ...]", "", "commands:", *lines, ""]
        print(*usage, "mitoseg COMMAND --help lists its options.", sep="\n", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    hint = nearest(words[0], COMMANDS, f"choose one of {', '.join(COMMANDS)}")
    print(f"error: no such command: {words[0]!r}; {hint}", file=sys.stderr)
    return 2


def run_command(name: str, words: Sequence[str] | None = None) -> None:
    """Run one command; its module, and torch with it, is imported when the config stands."""
    words = sys.argv[1:] if words is None else words
    sys.argv = [sys.argv[0], *with_keys(name, words)]
    launch(name, _Command(name))


def with_keys(name: str, words: Sequence[str]) -> list[str]:
    """The arguments of a command with their keys in full: a first one that stands alone, and the forms of `SHORT`.

    >>> with_keys("view", ["my run", "port=8080", "--help"]), with_keys("train", ["a", "voxel_size=40,6,6"])
    (['run=my run', 'port=8080', '--help'], ['a', 'data.voxel_size=40,6,6'])
    """
    key, short, given = POSITIONAL.get(name), SHORT.get(name, {}), list(words)
    for place, word in enumerate(given):
        head, sign, value = word.partition("=")
        given[place] = f"{short.get(head, head)}{sign}{value}"
    for place, word in enumerate(given if key else ()):
        if not word.startswith("-") and ("=" not in word or Path(word).exists()):
            given[place] = f"{key}={word}"
            break  # a second one is a mistake, which Hydra tells
    return given


class _Command:
    """The ``run`` of a command, imported when called (a class, since the workers of a sweep must pickle it)."""

    def __init__(self, name: str) -> None:
        self.__module__ = f"mitoseg.{'viewers' if name == 'view' else 'workflows'}.{name}"
        self.__name__ = self.__qualname__ = "run"

    def __call__(self, cfg: DictConfig) -> float | None:
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # read once, when torch is loaded
            os.environ["GOMP_SPINCOUNT"] = SPINS
        with waiting("loading torch and other libraries"):
            module = import_module(self.__module__)
        torch, cores = sys.modules.get("torch"), usable_cores()
        if torch is not None and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
            torch.set_num_threads(cores)
        more = () if ".viewers." in self.__module__ else (run_dir(), tell)
        result: float | None = module.run(typed(cfg), *more)
        return result
