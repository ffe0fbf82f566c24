"""How a phantom looks: voxel size, how much of what, grey levels, and what the microscope adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from mitoseg.errors import UserError


@dataclass(frozen=True)
class Tissue:
    """What is in the volume; shares are of its voxels, lengths in nm. All but neurites are as dark as mitochondria."""

    mitochondria: float = 0.065
    lysosomes: float = 0.025
    multivesicular: float = 0.02
    dark_cells: float = 0.09
    myelinated: float = 0.045  # cells behind a myelin sheath
    neurite_radius: float = 120.0  # median
    vesicle_clusters: float = 12.0  # synaptic vesicles, per cubic micrometre
    cisterns: float = 90.0  # endoplasmic reticulum, per cubic micrometre


@dataclass(frozen=True)
class Greys:
    """Grey levels before the microscope, 0 black to 255 white."""

    cytoplasm: float = 163.0  # mean of light cytoplasm
    dark: float = 110.0  # common mean of mitochondria and of everything that mimics them
    spread: float = 5.0  # standard deviation of an object's own mean about its kind's
    membrane: float = 70.0  # darkest level
    gap: float = 112.0  # between two cells
    cristae: float = 24.0  # amplitude about the matrix
    granules: float = 13.0  # standard deviation of the grain of light cytoplasm


@dataclass(frozen=True)
class Microscope:
    """What the instrument adds; all but charging and shift are standard deviations."""

    blur: tuple[float, float, float] = (0.7, 1.0, 1.0)  # point spread, in voxels (z, y, x)
    shading: float = 0.035  # slow illumination field, as a share of the signal
    jitter: float = 1.2  # each slice's brightness
    curtains: float = 1.5  # streaks along y that milling leaves
    shot: float = 7.5  # noise at grey 128; its variance grows with the signal
    detector: float = 4.0  # noise
    charging: float = 0.0  # brightest glow along the scan line (x) behind bright places
    shift: int = 0  # largest shift of a section from its place, in voxels; the truth moves with it


@dataclass(frozen=True)
class Preset:
    """A kind of phantom: its voxel size (z, y, x) in nm, its tissue, its greys and its microscope."""

    name: str
    voxel_nm: tuple[float, float, float]
    tissue: Tissue = field(default_factory=Tissue)
    greys: Greys = field(default_factory=Greys)
    microscope: Microscope = field(default_factory=Microscope)


PRESETS: dict[str, Preset] = {
    "fibsem": Preset("fibsem", (5.0, 5.0, 5.0)),
    "sbem": Preset(
        "sbem",
        (30.0, 6.0, 6.0),
        greys=Greys(cytoplasm=172.0, membrane=52.0, gap=150.0),
        microscope=Microscope(
            (0.0, 0.8, 0.8), shading=0.03, jitter=3.0, curtains=0.0, shot=7.0, detector=4.0, charging=30.0, shift=4
        ),
    ),
}
"""The presets by name: `fibsem` like focused-ion-beam SEM of hippocampus, `sbem` like serial block-face SEM."""


def get_preset(name: str) -> Preset:
    """The preset of that name."""
    if name not in PRESETS:
        raise UserError("no such phantom preset", name, "choose one of " + ", ".join(sorted(PRESETS)))
    return PRESETS[name]
