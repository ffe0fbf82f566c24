"""Every path that can be typed reaches the config as it was typed, through Hydra's and OmegaConf's own grammar."""

from pathlib import Path

import pytest
from hydra._internal.grammar.utils import escape_special_characters
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mitoseg.arguments import PATH_KEYS, literal, quote, quote_override, requote_override, unquote
from mitoseg.errors import UserError

PARSER = OverridesParser.create()
NAMES = st.text(st.sampled_from("ab1 []()={}~#,:;'\"\\/$äÖß.+-*?!|@%&\t") | st.characters(codec="utf-8"), min_size=1)
KEYS = st.sampled_from([*PATH_KEYS, "data.train.image", "data.test.label", "+input", "++data.root"])


def hydra_value(word):
    """What Hydra reads from a word of the command line."""
    return PARSER.parse_override(word).value()


def is_left_alone(path):
    """Whether the text is one of those that the module promises to leave to Hydra, or refuses."""
    bare = path.strip()
    wrapped = any(bare.startswith(a) and bare.endswith(b) for a, b in (("choice(", ")"), ("[", "]")))
    return wrapped or bare.lower() in {"", "null"} or bare[0] in "\"'" or "${" in path or path.startswith("~/")


@given(KEYS, NAMES)
def test_a_path_comes_through_unchanged(key, path):
    assume(not is_left_alone(path))
    word = quote_override(f"{key}={path}")
    assert hydra_value(word) == path
    assert OmegaConf.create({"k": hydra_value(word)}).k == path


@given(KEYS, NAMES)
def test_quoting_twice_is_quoting_once(key, path):
    assume("${" not in path)
    once = quote_override(f"{key}={path}")
    assert quote_override(once) == once


@given(NAMES)
def test_quote_and_unquote_are_inverse(text):
    assert unquote(quote(text)) == text
    assert hydra_value(f"k={quote(text)}") == text


@given(st.lists(st.sampled_from(["${", "\\", "a", "}", '"', "$"]), min_size=1).map("".join))
def test_literal_keeps_what_looks_like_an_interpolation(text):
    assume("${" in text)
    assert OmegaConf.create({"k": hydra_value(f"k={literal(text)}")}).k == text


@pytest.mark.parametrize(
    "path",
    [
        *("my scan.tif", "scan (1).tif", "[1].tif", "[a,b]", "a,b.tif", "a=b.tif", "~backup/a#1.tif"),
        *("Müller/Größe.tif", "it's.tif", 'say "a".tif', r"C:\data\new\x.h5:/volume", "C:/data/x.h5:/volume"),
        *("ends in a backslash\\", "{a: b}.tif", "$HOME/x.tif", "null.tif", "7", "true", " two ends "),
    ],
)
def test_names_that_people_have(path):
    word = quote_override(f"output={path}")
    assert hydra_value(word) == path
    assert not PARSER.parse_override(word).is_sweep_override()


@pytest.mark.parametrize(
    "word",
    [
        *(
            "input=null",
            "input=",
            'input="a, b"',
            "input='a, b'",
            'input="a","b"',
            "data.train.image=choice([a,b],[c])",
        ),
        *("seed=1,2,3", "~input", "-m", "output", "trainer.devices=2", "input_size=a,b"),
    ],
)
def test_other_words_are_left_to_hydra(word):
    assert quote_override(word) == word


def test_choice_of_odd_paths_is_a_sweep():
    override = PARSER.parse_override(quote_override('input=choice(ä b.tif,[1].tif,"c,d.tif")'))
    jobs = [f"input={value}" for value in override.sweep_string_iterator()]
    assert [hydra_value(job) for job in jobs] == ["ä b.tif", "[1].tif", "c,d.tif"]
    assert list(map(quote_override, jobs)) == jobs


@given(KEYS, st.text("ab1 ()[]{}:=,\\/.", min_size=1))
def test_words_that_a_sweeper_wrote_keep_their_meaning(key, path):
    word = f"{key}={escape_special_characters(path)}"
    try:
        meant = hydra_value(word)
    except HydraException:
        assume(False)
    assume(isinstance(meant, str) and "${" not in meant)
    assert hydra_value(quote_override(requote_override(word))) == meant


BOX = ["0:82", "64:768", "0:1024"]
QUOTED_BOX = '["0:82","64:768","0:1024"]'
READ = [
    *(("[a.tif,b c.tif]", ["a.tif", "b c.tif"]), ('["a,b.tif",ä=[1].tif]', ["a,b.tif", "ä=[1].tif"])),
    *(('["a.tif","b.tif"]', ["a.tif", "b.tif"]), ("[a.tif]", ["a.tif"]), ("[a].tif", "[a].tif")),
    *(("a,b.tif", "a,b.tif"), ('[a b.tif,"c, d.tif",e=f.tif]', ["a b.tif", "c, d.tif", "e=f.tif"])),
    *(("data/*.tif", "data/*.tif"), ("scan [1].tif", "scan [1].tif")),
]
"""Lists of files, and what is none."""
CASES = [
    (f"{key}={value}", found)
    for key in ("data.train.image", "input", "labels", "checkpoints")
    for value, found in READ
]
BOXES = ["[0:82,64:768,0:1024]", "0:82,64:768,0:1024", QUOTED_BOX, "[0:82, 64:768, 0:1024]"]
CASES += [(f"{key}={value}", BOX) for key in ("crop", "data.test.box", "+crop") for value in BOXES]
CASES += [("crop=[:,3:,:4]", [":", "3:", ":4"]), ("crop=0:2", ["0:2"]), ("crop=null", None)]
CASES += [(f"hydra.run.dir={value}", value) for value in ("out/${now:%H}", "out/run1", "out/Größe, 2")]
COLOURED = ("foreground", "prediction_foreground", "data.train.foreground", "data.foreground")
CASES += [case for key in COLOURED for case in ((f"{key}=#c80000", "#c80000"), (f"{key}=[#c80000,3]", ["#c80000", 3]))]


@pytest.mark.parametrize(("word", "expected"), CASES)
def test_what_hydra_reads(word, expected):
    quoted = quote_override(word)
    assert hydra_value(quoted) == expected
    assert quote_override(quoted) == quoted


def test_a_file_with_brackets_for_a_name_is_no_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("[a,b]").touch()
    assert hydra_value(quote_override("data.train.label=[a,b]")) == "[a,b]"


def test_interpolations_in_a_path_are_refused_unless_quoted():
    with pytest.raises(UserError, match="quote the value"):
        quote_override("input=${a}.tif")
    assert quote_override('input="${a}.tif"') == 'input="${a}.tif"'


def test_home_is_expanded_where_the_shell_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Path(hydra_value(quote_override("input=~/a, b.tif"))) == tmp_path / "a, b.tif"


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("[epochs=1, data.tile=[1,32,32]]", '["epochs=1","data.tile=[1,32,32]"]'),
        ("[experiment=paper]", '["experiment=paper"]'),
        ('["epochs=1","a=[b,c]"]', '["epochs=1","a=[b,c]"]'),
        ("[]", "[]"),
        ("{samples: 5}", "{samples: 5}"),
    ],
)
def test_words_within_a_word(value, quoted):
    for key in ("methods.unet25d.small", "methods.my-own.train"):
        assert quote_override(f"{key}={value}") == f"{key}={quoted}"
        assert quote_override(f"{key}={quoted}") == f"{key}={quoted}"


def test_checkpoints_of_methods_are_paths():
    assert quote_override("methods.unet25d.checkpoint=a, [b].ckpt") == 'methods.unet25d.checkpoint="a, [b].ckpt"'
    assert quote_override("methods.unet25d.checkpoint=null") == "methods.unet25d.checkpoint=null"
    assert quote_override("figure_box=4:5,0:8,0:9") == 'figure_box=["4:5","0:8","0:9"]'
