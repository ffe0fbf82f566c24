"""Names of folders made from words such as ``network=patch_cnn``: the same on every machine and in every run.

Letters, digits and ``. _ + = , -`` stay, which every file system takes. Where something else is replaced, or a name is
cut, or only capitals would tell two names apart, eight digits of a hash follow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from mitoseg.cli.quoting import unquote

LONGEST_JOB = 100
LONGEST_SWEEP = 60
_ODD = re.compile(r"[^a-z0-9._+=,-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_NAMED_FIRST = ("experiment", "hparams_search")


def key_of(word: str) -> str:
    """The key of a word.

    >>> key_of("+a.b=1")
    'a.b'
    """
    return word.partition("=")[0].lstrip("+~")


def value_of(word: str) -> str:
    """The value of a word, without quotes.

    >>> value_of('input="a b.tif"')
    'a b.tif'
    """
    return unquote(word.partition("=")[2])


def job_name(words: Iterable[str]) -> str:
    """The folder of a job, from the words that set it apart; the order of the words does not matter.

    >>> job_name(["seed=2", "network=patch_cnn"])
    'network=patch_cnn,seed=2'
    >>> job_name([])
    'job'
    """
    ordered = sorted(words, key=key_of)
    plain = ",".join(f"{key_of(word)}={value_of(word)}" for word in ordered)
    return safe_name(plain, identity="\n".join(ordered), longest=LONGEST_JOB) if plain else "job"


def sweep_name(words: Sequence[str], swept: Sequence[str], context: Sequence[str] = ()) -> str:
    """The folder of a sweep: ``name=`` if it is given, else what varies and a hash of all that decides the jobs.

    Args:
        words: The command line, quoted.
        swept: Those of its words that hold several values.
        context: What else decides the jobs, such as the name of the config.
    """
    named = [word for word in words if key_of(word) == "name" and word not in swept]
    if named:
        return safe_name(value_of(named[-1]), identity=value_of(named[-1]), longest=LONGEST_SWEEP)
    decisive = sorted((word for word in words if not _is_about_running(word)), key=key_of)
    first = [value_of(word) for key in _NAMED_FIRST for word in words if key_of(word) == key and word not in swept]
    shown = "_".join([*first, *(word.replace(",", "+") for word in sorted(swept, key=key_of))])
    cut = _ODD.sub("-", shown.lower()).strip("-._")[: LONGEST_SWEEP - 9].rstrip("-._") or "sweep"
    return f"{cut}_{_digest(chr(10).join([*context, *decisive]))}"


def safe_name(text: str, identity: str, longest: int) -> str:
    """A file name for ``text``, with a hash of ``identity`` if the text does not survive as it is.

    >>> safe_name("paper", "paper", 60)
    'paper'
    >>> safe_name("a/b", "a/b", 60)
    'a-b_c14cddc0'
    """
    plain = _ODD.sub("-", text.lower())
    if plain == text and len(plain) <= longest and plain.strip(".") == plain and not _RESERVED.fullmatch(plain):
        return plain
    cut = plain.strip("-._")[: longest - 9].rstrip("-._") or "job"
    return f"{cut}_{_digest(identity)}"


def _is_about_running(word: str) -> bool:
    """Whether a word says how jobs are started or how many, not what they do."""
    return key_of(word).startswith("hydra") and not key_of(word).startswith("hydra.sweeper.params")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
