"""What else the dense form promises: both orders, tiles, memory formats, precision, sharing, compiling, refusals."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mitoseg.errors import UserError
from mitoseg.inference.precision import computing
from mitoseg.networks import ContextCNN, DenseForm, PatchCNN

CPU = torch.device("cpu")
SHARED_RELU = nn.ReLU()


def network_2d():
    """Field 12, stride 6."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.MaxPool2d(2),
        SHARED_RELU,
        nn.Conv2d(8, 8, 3),
        nn.Tanh(),
        SHARED_RELU,
        nn.AvgPool2d(3, 3),
        nn.Conv2d(8, 3, 1),
    ).eval()


def network_3d():
    """Fields (3, 6, 6), strides (1, 2, 2)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 8, (1, 3, 3)), nn.MaxPool3d((1, 2, 2)), nn.ReLU(), nn.BatchNorm3d(8), nn.Conv3d(8, 3, (3, 2, 2))
    ).eval()


CASES = {
    "2D": (network_2d, (2, 2, 25, 30)),
    "3D": (network_3d, (2, 2, 5, 11, 14)),
    "PatchCNN": (lambda: PatchCNN().eval(), (2, 3, 72, 80)),
}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(params=CASES)
def case(request):
    make, shape = CASES[request.param]
    return make(), torch.randn(shape)


@torch.inference_mode()
def test_both_orders_agree_and_the_default_is_by_device(case, monkeypatch):
    network, image = case
    first, last = (DenseForm(network, depth_first=order)(image) for order in (True, False))
    torch.testing.assert_close(first, last, rtol=0, atol=1e-6)
    monkeypatch.setattr(DenseForm, "_breadth_first", None)
    assert torch.equal(DenseForm(network)(image), first)


@pytest.mark.parametrize("network_class", [PatchCNN, ContextCNN])
@pytest.mark.parametrize("depth_first", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.inference_mode()
def test_part_of_an_image_answers_the_same_to_the_last_bit(network_class, depth_first, channels_last):
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = network_class().eval().to(memory_format=memory_format)
    dense = DenseForm(network, depth_first=depth_first)
    image = torch.randn(2, 3, 110, 133).contiguous(memory_format=memory_format)
    with computing("fp32", CPU):
        whole = dense(image)
        for y, x, height, width in [(0, 0, 67, 67), (3, 5, 70, 80), (8, 16, 90, 91), (17, 30, 93, 103)]:
            part = image[:1, :, y : y + height, x : x + width].contiguous(memory_format=memory_format)
            assert torch.equal(dense(part), whole[:1, :, y : y + height - 66, x : x + width - 66])


@pytest.mark.parametrize("depth_first", [True, False])
@torch.inference_mode()
def test_memory_format_is_kept(case, depth_first):
    network, image = case
    dense, last = DenseForm(network, depth_first=depth_first), CHANNELS_LAST[image.ndim]
    expected = dense(image)
    assert expected.is_contiguous()
    answer = dense(image.contiguous(memory_format=last))
    assert answer.is_contiguous(memory_format=last)
    assert not answer.is_contiguous()
    torch.testing.assert_close(answer.contiguous(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth_first", [True, False])
@torch.inference_mode()
def test_bfloat16(case, depth_first):
    network, image = case
    dense = DenseForm(network, depth_first=depth_first)
    with torch.autocast("cpu", torch.bfloat16):
        answer, original = dense(image), network(image)
    assert answer.dtype == original.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), dense(image), rtol=0, atol=0.03)


@pytest.mark.parametrize("depth_first", [True, False])
def test_without_voxels(case, depth_first):
    network, image = case
    shape = DenseForm(network, depth_first=depth_first)(image).shape
    answer = DenseForm(network.to("meta"), depth_first=depth_first)(image.to("meta"))
    assert answer.is_meta
    assert answer.shape == shape


def test_later_training_is_seen():
    network, image = network_2d(), torch.randn(1, 2, 20, 20)
    dense = DenseForm(network)
    before = dense(image)
    with torch.no_grad():
        network[-1].bias.add_(1)
    torch.testing.assert_close(dense(image), before + 1)
    assert {id(p) for p in dense.parameters()} == {id(p) for p in network.parameters()}
    dense.double()
    assert network[0].weight.dtype == torch.float64
    assert dense(image.double()).dtype == torch.float64


def test_a_copy_has_its_own_parameters():
    dense, image = DenseForm(network_2d()), torch.randn(1, 2, 20, 20)
    other, before = copy.deepcopy(dense), dense(image)
    with torch.no_grad():
        dense.network[-1].bias.add_(1)
    assert torch.equal(other(image), before)


def test_gradients_are_those_of_the_windows():
    network, image = network_2d(), torch.randn(1, 2, 15, 12)
    alone = torch.stack([network(image[:, :, i : i + 12]) for i in range(4)])
    gradients = [
        torch.autograd.grad(answer.square().sum(), list(network.parameters()))
        for answer in (
            DenseForm(network, depth_first=True)(image),
            DenseForm(network, depth_first=False)(image),
            alone,
        )
    ]
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


def test_the_given_layers_stay_as_they_are():
    network = PatchCNN().eval()
    description, image = repr(network), torch.randn(1, 3, 64, 64)
    before = network(image)
    DenseForm(network)(torch.randn(1, 3, 70, 70))
    assert repr(network) == description
    assert torch.equal(network(image), before)


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.Sequential(nn.Dropout(), nn.ELU(inplace=True))])
@torch.inference_mode()
def test_an_image_is_not_changed_by_a_first_layer_in_place(layer):
    image = torch.randn(1, 2, 17, 17)  # 6x6 outputs: need not be extended, which would copy it
    before = image.clone()
    expected = network_2d()(layer.eval()(image.clone())[..., :12, :12])
    answer = DenseForm(nn.Sequential(layer, network_2d()).eval())(image)
    assert torch.equal(image, before)
    torch.testing.assert_close(answer[..., :1, :1], expected)


@torch.inference_mode()
def test_parametrized_weights():
    network = nn.Sequential(weight_norm(nn.Conv2d(1, 2, 3)), nn.MaxPool2d(2))
    image = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(DenseForm(network)(image), network(image))


@pytest.mark.parametrize("depth_first", [True, False])
@torch.inference_mode()
def test_every_segment_is_compiled_on_its_own(depth_first, monkeypatch):
    """Torch gives up after eight compilations of one code object; here are 3 segments, 3 shapes and 2 networks."""
    compiler = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)  # fullgraph: an error where torch would give up
    for _ in range(2):
        dense = DenseForm(network_2d(), depth_first=depth_first)
        images = [torch.randn(1, 2, 17 + 6 * i, 17) for i in range(3)]
        expected = [dense(image) for image in images]
        dense.compile_segments()
        for image, answer in zip(images, expected, strict=True):
            torch.testing.assert_close(dense(image), answer, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # from within torch.compile
@pytest.mark.parametrize("depth_first", [True, False])
@torch.inference_mode()
def test_compiled_equals_eager(case, depth_first):
    network, image = case
    dense = DenseForm(network, depth_first=depth_first)
    expected = dense(image)
    dense.compile_segments()
    torch.testing.assert_close(dense(image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (nn.GroupNorm(1, 3), "normalises"),
        (nn.InstanceNorm2d(3), "normalises"),
        (nn.LayerNorm(3), "normalises"),
        (nn.AdaptiveAvgPool2d(1), "pools the whole image"),
        (nn.AdaptiveMaxPool3d(1), "pools the whole image"),
        (nn.ConvTranspose2d(3, 3, 2), "enlarges"),
        (nn.Upsample(scale_factor=2), "enlarges"),
        (nn.Flatten(), "convolution with kernel 1"),
        (nn.Linear(3, 3), "convolution with kernel 1"),
        (nn.Bilinear(3, 3, 3), "Bilinear"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.BatchNorm2d(3, track_running_stats=False), "track_running_stats"),
        (nn.Softmax(-1), "dim=1"),
        (nn.Conv3d(3, 3, 1), "2D and 3D"),
        (nn.MaxPool3d(2), "2D and 3D"),
        (type("Residual", (nn.Sequential,), {"forward": lambda self, x: x})(), "Residual"),
        (type("Special", (nn.Conv2d,), {})(3, 3, 1), "Special"),
    ],
)
def test_a_layer_without_a_dense_form(bad, name):
    with pytest.raises(UserError, match=name):
        DenseForm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), bad)))


def test_a_network_without_a_dense_form():
    with pytest.raises(UserError, match="without a convolution"):
        DenseForm(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    with pytest.raises(UserError, match=r"Conv2d.*Sequential"):
        DenseForm(nn.Conv2d(1, 1, 1))
    hooked = nn.Sequential(nn.Conv2d(1, 1, 1))
    hooked[0].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(UserError, match="hooks"):
        DenseForm(hooked)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((2, 20, 20), "B, C, Y, X"),
        ((1, 2, 4, 20, 20), "axes"),
        ((1, 3, 20, 20), "channels"),
        ((1, 2, 20, 11), "(12, 12)"),
    ],
)
def test_an_image_that_does_not_fit(shape, name):
    with pytest.raises(UserError) as error:
        DenseForm(nn.Sequential(nn.Conv2d(2, 1, 4), nn.MaxPool2d(3), nn.Conv2d(1, 1, 3)))(torch.zeros(shape))
    assert name in str(error.value)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(), nn.RReLU()])
def test_training_mode(layer):
    network = nn.Sequential(nn.Conv2d(1, 3, 1), layer)
    dense = DenseForm(network)
    assert dense.training
    with pytest.raises(UserError, match=type(layer).__name__):
        dense(torch.zeros(1, 1, 4, 4))
    assert dense.eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 3, 4, 4)
    assert not network.training
    network.train()
    with pytest.raises(UserError, match="training"):
        dense(torch.zeros(1, 1, 4, 4))
