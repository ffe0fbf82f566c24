"""How a phantom looks: voxel size, how much of what, grey levels, and what the microscope adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from mitoseg.errors import UserError


@dataclass(frozen=True)
class Tissue:
    """What is in the volume; shares are of its voxels, lengths in nm.

    Attributes:
        mitochondria: Share of mitochondria.
        lysosomes: Share of lysosomes, as dark as mitochondria.
        multivesicular: Share of multivesicular bodies, as dark as mitochondria.
        dark_cells: Share of cells with dense cytoplasm, as dark as mitochondria.
        myelinated: Share of cells behind a myelin sheath.
        neurite_radius: Median radius of a neurite.
        vesicle_clusters: Clusters of synaptic vesicles per cubic micrometre.
        cisterns: Cisterns of endoplasmic reticulum per cubic micrometre.
    """

    mitochondria: float = 0.065
    lysosomes: float = 0.025
    multivesicular: float = 0.02
    dark_cells: float = 0.09
    myelinated: float = 0.045
    neurite_radius: float = 120.0
    vesicle_clusters: float = 12.0
    cisterns: float = 90.0


@dataclass(frozen=True)
class Greys:
    """Grey levels before the microscope, 0 black to 255 white.

    Attributes:
        cytoplasm: Mean of light cytoplasm.
        dark: Common mean of mitochondria and of everything that mimics them.
        spread: Standard deviation of an object's own mean about its kind's.
        membrane: A membrane's darkest level.
        gap: Between two cells.
        cristae: Amplitude of the cristae about the matrix.
        granules: Standard deviation of the grain of light cytoplasm.
    """

    cytoplasm: float = 163.0
    dark: float = 110.0
    spread: float = 5.0
    membrane: float = 70.0
    gap: float = 112.0
    cristae: float = 24.0
    granules: float = 13.0


@dataclass(frozen=True)
class Microscope:
    """What the instrument adds.

    Attributes:
        blur: Standard deviation of the point spread, in voxels (z, y, x).
        shading: Standard deviation of the slow illumination field, as a share of the signal.
        jitter: Standard deviation of each slice's brightness.
        curtains: Standard deviation of the streaks along y that milling leaves.
        shot: Standard deviation of shot noise at grey 128; its variance grows with the signal.
        detector: Standard deviation of the detector's noise.
        charging: Brightest charging: a glow along the scan line (x) behind bright places.
        shift: Largest shift of a section from its place, in voxels; the truth moves with it.
    """

    blur: tuple[float, float, float] = (0.7, 1.0, 1.0)
    shading: float = 0.035
    jitter: float = 1.2
    curtains: float = 1.5
    shot: float = 7.5
    detector: float = 4.0
    charging: float = 0.0
    shift: int = 0


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
            blur=(0.0, 0.8, 0.8),
            shading=0.03,
            jitter=3.0,
            curtains=0.0,
            shot=7.0,
            detector=4.0,
            charging=30.0,
            shift=4,
        ),
    ),
}
"""The presets by name: `fibsem` like focused-ion-beam SEM of hippocampus, `sbem` like serial block-face SEM."""


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: There is none.

    >>> get_preset("sbem").voxel_nm
    (30.0, 6.0, 6.0)
    """
    if name not in PRESETS:
        raise UserError("no such phantom preset", name, "choose one of " + ", ".join(sorted(PRESETS)))
    return PRESETS[name]
