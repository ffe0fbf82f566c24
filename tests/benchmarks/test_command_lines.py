"""The command lines of the benchmarks: what cannot be read is one line, and --help names every option."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_imports(scripts, path):
    assert scripts(path.stem).__doc__


@pytest.mark.parametrize("name", ["confidence", "few_labels", "generalist"])
def test_unknown_options_are_told(scripts, name):
    with pytest.raises(SystemExit, match="no such option: nonsense"):
        scripts(name).main(["nonsense=1"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("inference", words) for words in (["nonsense=1"], ["parts=windows"], ["turns=many"])),
        *(("training", words) for words in (["nonsense=1"], ["networks=unet", "quick=true"], ["turns=many"])),
    ],
)
def test_words_that_cannot_be_read(scripts, name, words):
    with pytest.raises(SystemExit, match="error: "):
        scripts(name).main(words)


@pytest.mark.parametrize("name", ["inference", "training", "instances", "postprocessing"])
def test_help_names_every_option(scripts, capsys, name):
    script = scripts(name)
    script.main(["--help"])
    told = capsys.readouterr().out
    options = script.HELP if hasattr(script, "HELP") else script.Options.__dataclass_fields__
    assert all(f"\n{option}=" in told for option in options)
