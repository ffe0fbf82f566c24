"""The words that choose how blocks are made, and the line that a wrong one gets."""

from __future__ import annotations

from collections.abc import Collection

from mitoseg.errors import UserError

LABEL_RULES = ("purity", "majority", "center")
"""How a block gets its class."""

POSITIONS = ("grid", "any")
"""Where blocks may lie."""

BALANCES = ("rotate", "subsample", "none")
"""How the two classes are brought to the same number of draws."""

AUGMENTS = ("none", "turns", "dihedral", "any_angle")
"""What is done to every block on top."""

INTERPOLATIONS = ("bilinear", "nearest")
"""How a block is sampled at an angle that is no multiple of 90 degrees."""

PLACES = ("auto", "device", "host")
"""Where the training voxels lie."""


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not one of the choices.

    Raises:
        UserError: ``value`` is none of ``choices``; the line names them.

    >>> check_choice("balance", "rotate", BALANCES)
    """
    if value not in choices:
        raise UserError(f"unknown {option}", value, f"choose one of {', '.join(choices)}")


def check_positive(option: str, value: int) -> None:
    """Refuse a number below 1.

    Raises:
        UserError: ``value`` is below 1.

    >>> check_positive("batch_size", 100)
    """
    if value < 1:
        raise UserError(f"{option} is not positive", value, "give 1 or more")
