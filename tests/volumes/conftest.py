import numpy as np
import pytest


@pytest.fixture
def image_zyx():
    """Voxels that encode their own position, so that a wrong axis or offset shows."""
    z, y, x = np.ogrid[:6, :37, :50]
    return (z * 40 + y * 3 + x).astype(np.uint8)
