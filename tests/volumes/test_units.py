import pytest

from mitoseg.volumes.units import in_nm, voxel_size_nm


@pytest.mark.parametrize(
    ("value", "unit", "nm"),
    [
        (5, "nm", 5),
        ("5", "nanometer", 5),
        (0.005, "um", 5),
        (0.005, "µm", 5),  # micro sign
        (0.005, "μm", 5),  # Greek mu
        (0.005, "\\u00B5m", 5),  # as ImageJ writes it
        (0.005, "micron", 5),
        (0.0046, " Micrometer ", 4.6),
        (5e-6, "mm", 5),
        (5e-7, "cm", 5),
        (50, "angstrom", 5),
        (50, "Å", 5),
        (5e-9, "m", 5),
        *((50, unit, 5) for unit in ("angstroms", "Ångström", "\\u00C5", "\\u212B")),
    ],
)
def test_lengths_in_nm(value, unit, nm):
    assert in_nm(value, unit) == pytest.approx(nm)


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        *((1, unit) for unit in ("", "pixel", "inch", None, "cm")),
        (0.005, "nm"),  # in um by what it is
        *((value, "nm") for value in (0, -1, None, "x", float("nan"), float("inf"), [1])),
    ],
)
def test_what_is_no_length(value, unit):
    assert in_nm(value, unit) is None


def test_all_three_must_be_known():
    assert voxel_size_nm([0.05, 0.004, 0.004], "um") == (50, 4, 4)
    assert voxel_size_nm([50, 0.004, 4], ["nm", "um", "nm"]) == (50, 4, 4)
    assert voxel_size_nm([50, None, 4]) is None
    assert voxel_size_nm([50, 4]) is None
    assert voxel_size_nm([]) is None
