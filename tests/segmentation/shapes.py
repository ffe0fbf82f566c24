"""Masks of known volume, surface and length."""

import numpy as np


def ball(radius, size):
    """A ball of ``radius`` nm in the smallest grid that leaves a margin."""
    steps = [int(radius / s) + 2 for s in size]
    z, y, x = np.meshgrid(*(np.arange(-n, n + 1) * s for n, s in zip(steps, size, strict=True)), indexing="ij")
    return z**2 + y**2 + x**2 <= radius**2


def tube(direction, length, radius, size):
    """A tube with round ends: its axis is ``length`` nm long, and it reaches ``radius`` farther at both ends."""
    unit = np.array(direction) / np.linalg.norm(direction)
    reach = np.abs(unit) * length / 2 + radius + np.array(size)
    axes = (np.arange(-np.ceil(r / s), np.ceil(r / s) + 1) * s for r, s in zip(reach, size, strict=True))
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    along = np.clip(places @ unit, -length / 2, length / 2)
    return np.linalg.norm(places - along[..., None] * unit, axis=-1) <= radius
