import numpy as np
import pytest

from mitoseg.classical.features import VoxelFeatures, as_volume, read_with_halo, slab_features
from mitoseg.classical.voxelwise import draw_samples, labelled_runs
from mitoseg.errors import UserError
from mitoseg.geometry import Box

FEATURES = VoxelFeatures((4.0,), (20.0, 5.0, 5.0))


def image_and_label():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (7, 12, 11)).astype(np.uint8)
    label = (rng.random(image.shape) < 0.2).astype(np.uint8)
    label[2:4] = 255
    label[5, :6] = 255
    return image, label


def draw(count=60, depth=2, seed=0, label=None):
    image, known = image_and_label()
    label = known if label is None else label
    rng = np.random.default_rng(seed)
    return draw_samples(as_volume(image), as_volume(label), FEATURES, count, depth, rng)


def test_the_classes_are_even_and_the_prior_is_that_of_the_labels():
    samples = draw()
    _, label = image_and_label()
    assert samples.label_n.sum() * 2 == len(samples.label_n) == 60
    assert samples.prior == (label == 1).sum() / (label != 255).sum()
    # a classifier that answers 0.5 to everything must end at the prior
    assert 1 / (1 + np.exp(samples.shift)) == pytest.approx(samples.prior)


def test_a_rare_class_is_taken_whole():
    label = np.zeros((7, 12, 11), np.uint8)
    label[3, 4, 5:8] = 1
    samples = draw(count=100, label=label)
    assert samples.label_n.sum() == 3
    assert len(samples.label_n) == 53
    assert 1 / (1 + np.exp(samples.shift - np.log(3 / 50))) == pytest.approx(samples.prior)


def test_samples_are_of_their_voxels_and_ignored_ones_are_never_drawn():
    image, label = image_and_label()
    known = {tuple(f): int(v) for f, v in zip(FEATURES(image).reshape(6, -1).T, label.ravel(), strict=True)}
    samples = draw()
    assert [known[tuple(f)] for f in samples.features_nf] == samples.label_n.astype(int).tolist()


def test_the_sample_does_not_depend_on_the_slabs_but_on_the_seed():
    first = draw()
    for depth in (1, 3, 7):
        np.testing.assert_array_equal(draw(depth=depth).features_nf, first.features_nf)
    assert not np.array_equal(draw(seed=1).features_nf, first.features_nf)


def test_runs_of_labelled_slices():
    runs = labelled_runs(as_volume(image_and_label()[1]))
    assert [str(run) for run in runs] == ["[0:2,0:12,0:11]", "[4:7,0:12,0:11]"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.full((7, 12, 11), 255, np.uint8), "nothing is labelled"),
        (np.zeros((7, 12, 11), np.uint8), "0 voxels of mitochondria"),
        (np.full((7, 12, 11), 3, np.uint8), "other than 0, 1 and 255"),
        (np.full((7, 12, 11), 0.5), "other than 0, 1 and 255"),
        (np.zeros((7, 12, 10), np.uint8), "shape"),
    ],
)
def test_labels_that_are_none_are_refused(label, words):
    with pytest.raises(UserError, match=words):
        draw(label=label)


def test_truth_values_are_labels():
    _, label = image_and_label()
    assert len(draw(label=label == 1).label_n) == 60


def test_beyond_the_volume_its_border_is_repeated():
    image, _ = image_and_label()
    found = read_with_halo(as_volume(image), Box((0, 3, 0), (2, 5, 11)), (9, 4, 2))
    padded = np.pad(image, ((9, 9), (4, 4), (2, 2)), mode="edge")
    np.testing.assert_array_equal(found, padded[0:20, 3:13, :])


def test_slabs_are_the_whole():
    image, _ = image_and_label()
    whole = FEATURES(image)
    for slab, found in slab_features(as_volume(image), Box.of_shape(image.shape), FEATURES, 3, threads=2):
        np.testing.assert_array_equal(found, whole[(slice(None), *slab.slices)])


def test_what_is_no_volume_is_refused():
    with pytest.raises(UserError, match="no volume"):
        as_volume(np.zeros((3, 4)))
    with pytest.raises(UserError, match="NaN"):
        read_with_halo(as_volume(np.full((3, 4, 5), np.nan)), Box((0, 0, 0), (1, 1, 1)), (1, 1, 1))
