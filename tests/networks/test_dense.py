"""The dense form against its definition: the network on every window, or its passes over shifted images."""

import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mitoseg.networks import ContextCNN, DenseForm, PatchCNN

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
MAXIMUM = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LIMITS = {2: (18, 8), 3: (8, 4)}  # largest field and stride on an axis
ACTIVATIONS = [
    *(nn.ReLU, lambda: nn.ReLU(inplace=True), nn.LeakyReLU, lambda: nn.ELU(inplace=True), nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.PReLU, nn.Mish, nn.Hardswish, lambda: nn.Softmax(1), nn.Identity),
    *(lambda: nn.LocalResponseNorm(2), nn.Dropout, nn.RReLU, nn.Hardtanh, nn.Softsign, nn.CELU, nn.LogSigmoid),
]


@st.composite
def layers(draw, ndim, channels, padded):
    """One layer, the channels it leaves, and its reach and stride."""

    def per_axis(strategy):
        return draw(st.one_of(strategy, st.tuples(*[strategy] * ndim)))

    def axes(value):
        return [value] * ndim if isinstance(value, int) else list(value)

    kind = draw(st.sampled_from(["convolution", "convolution", "maximum", "average", "activation", "norm"]))
    if kind == "activation":
        return draw(st.sampled_from(ACTIVATIONS))(), channels, [1] * ndim, [1] * ndim
    if kind == "norm":
        norm = NORM[ndim](channels)
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 1.5)
        return norm, channels, [1] * ndim, [1] * ndim
    kernel, stride = per_axis(st.integers(1, 4)), per_axis(st.integers(1, 3))
    dilation = per_axis(st.integers(1, 2)) if kind != "average" else 1
    reach = [d * (k - 1) + 1 for k, d in zip(axes(kernel), axes(dilation), strict=True)]
    if kind == "convolution":
        groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
        out = groups * draw(st.integers(1, 2))
        padding = per_axis(st.integers(0, 3)) if padded else draw(st.sampled_from([0, "valid"]))
        if padded and axes(stride) == [1] * ndim and draw(st.booleans()):
            padding = "same"
        options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
        options["padding_mode"] = draw(st.sampled_from(["zeros", "replicate"]))
        return CONVOLUTION[ndim](channels, out, kernel, stride, **options), out, reach, axes(stride)
    half = [draw(st.integers(0, k // 2)) if padded else 0 for k in axes(kernel)]
    options = {"padding": tuple(half), "ceil_mode": padded and draw(st.booleans())}
    if kind == "maximum":
        return MAXIMUM[ndim](kernel, stride, dilation=dilation, **options), channels, reach, axes(stride)
    options |= {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, 3]))}
    return AVERAGE[ndim](kernel, stride, **options), channels, reach, axes(stride)


@st.composite
def cases(draw, padded):
    """A small random network in eval mode, float64, with a random image."""
    ndim = draw(st.sampled_from([2, 2, 3]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels = in_channels = draw(st.integers(1, 2))
    most, largest = LIMITS[ndim]
    field, step, chain = [1] * ndim, [1] * ndim, []
    for _ in range(draw(st.integers(3, 8))):
        layer, out, reach, stride = draw(layers(ndim, channels, padded))
        longer = [f + (r - 1) * s for f, r, s in zip(field, reach, step, strict=True)]
        coarser = [a * b for a, b in zip(step, stride, strict=True)]
        if max(longer) > most or max(coarser) > largest:
            continue
        field, step, channels = longer, coarser, out
        chain.append(layer)
    split = draw(st.integers(0, len(chain)))
    network = nn.Sequential(nn.Sequential(*chain[:split]), *chain[split:], CONVOLUTION[ndim](channels, 3, 1))
    sizes = [
        f + draw(st.integers(0, 10 if ndim == 2 else 4)) + (s - 1) * padded for f, s in zip(field, step, strict=True)
    ]
    image = torch.randn(draw(st.integers(1, 2)), in_channels, *sizes, dtype=torch.float64)
    return network.double().eval(), image, tuple(field), tuple(step)


def sliding_window(network, image, field):
    """The network on every window alone; windows go through as a batch."""
    windows = image
    for axis, size in enumerate(field, 2):
        windows = windows.unfold(axis, size, 1)
    ndim = len(field)
    order = [0, *range(2, 2 + ndim), 1, *range(2 + ndim, 2 + 2 * ndim)]
    places = windows.permute(order).contiguous()
    scores = torch.cat([network(part.clone()) for part in places.flatten(0, ndim).split(500)])  # for layers in place
    assert scores.shape[2:] == (1,) * ndim
    return scores.flatten(1).reshape(*places.shape[: ndim + 1], -1).movedim(-1, 1)


def pick(answer, places):
    """Answers at some places, (places, B, classes)."""
    return torch.stack([answer[(..., *place)] for place in places])


def shifted_passes(network, image, dense):
    """Places whose field lies inside the shifted image, and the answers there of passes over shifted images."""
    sizes = [n - f + 1 for n, f in zip(image.shape[2:], dense.field, strict=True)]
    passes, places, answers = {}, [], []
    for place in itertools.product(*map(range, sizes)):
        start = [i + p for i, p in zip(place, dense.padding, strict=True)]
        shift = tuple(a % s for a, s in zip(start, dense.stride, strict=True))
        if any(i < r for i, r in zip(place, shift, strict=True)):
            continue
        if shift not in passes:
            passes[shift] = network(image[(..., *(slice(r, None) for r in shift))].clone())  # for layers in place
        places.append(place)
        answers.append(passes[shift][(..., *(a // s for a, s in zip(start, dense.stride, strict=True)))])
    return places, torch.stack(answers)


def assert_same_in_float32(network, image, expected):
    """Near in float32, and the same class wherever that is not a matter of rounding."""
    single = DenseForm(network.float())(image.float()).double()
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(single, expected, rtol=0, atol=tolerance)
    best = expected.topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 2 * tolerance
    assert torch.equal(single.argmax(1)[clear], expected.argmax(1)[clear])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases(padded=False), depth_first=st.booleans())
def test_equals_the_network_on_every_window(case, depth_first):
    network, image, field, stride = case
    dense = DenseForm(network, depth_first=depth_first)
    assert (dense.field, dense.stride, dense.padding) == (field, stride, (0,) * len(field))
    before = image.clone()
    with torch.no_grad():
        expected = sliding_window(network, image, field)
        answer = dense(image)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-9)
        assert torch.equal(image, before)
        assert_same_in_float32(network, image, expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@given(case=cases(padded=True), depth_first=st.booleans())
def test_equals_shifted_passes_of_a_padded_network(case, depth_first):
    network, image, field, stride = case
    dense = DenseForm(network, depth_first=depth_first)
    assert (dense.field, dense.stride) == (field, stride)
    with torch.no_grad():
        answer = dense(image)
        assert answer.shape[2:] == tuple(n - f + 1 for n, f in zip(image.shape[2:], field, strict=True))
        places, expected = shifted_passes(network, image, dense)
        torch.testing.assert_close(pick(answer, places), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, (4, 2), padding="same"), nn.MaxPool2d(2), nn.Conv2d(2, 2, 4, padding="same")],
        [nn.Conv2d(1, 2, 4, padding="same", dilation=(1, 3)), nn.AvgPool2d(2, 3), nn.Conv2d(2, 2, 2)],
        [nn.MaxPool2d(1, 3), nn.Conv2d(1, 2, 2, stride=(3, 1)), nn.AvgPool2d((1, 2), (2, 3))],
    ],
    ids=["even kernels, same", "odd total, same", "strides exceed kernels"],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@torch.no_grad()
def test_equals_shifted_passes_in_odd_cases(layers):
    network = nn.Sequential(*layers).double()
    dense, image = DenseForm(network), torch.randn(1, 1, 33, 36, dtype=torch.float64)
    places, expected = shifted_passes(network, image, dense)
    torch.testing.assert_close(pick(dense(image), places), expected, rtol=0, atol=1e-9)


def random_weights(network):
    """A block CNN whose biases are not zero and whose scores are of order 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return network.double().eval()


@pytest.mark.parametrize("size", [(67, 67), (71, 74), (75, 68)])
@torch.inference_mode()
def test_context_cnn_equals_its_window_at_every_pixel(size):
    network = random_weights(ContextCNN(1))
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    expected = sliding_window(network, image, (67, 67))
    torch.testing.assert_close(DenseForm(network)(image), expected, rtol=0, atol=1e-9)
    assert_same_in_float32(network, image, expected)


@torch.inference_mode()
def test_patch_cnn_equals_its_64_shifted_passes():
    network = random_weights(PatchCNN(3))
    dense = DenseForm(network)
    assert (dense.ndim, dense.in_channels) == (2, 3)
    assert (dense.field, dense.stride, dense.padding) == ((67, 67), (8, 8), (14, 14))
    image = torch.randn(1, 3, 67 + 14, 67 + 11, dtype=torch.float64)
    places, expected = shifted_passes(network, image, dense)
    assert len({(i % 8, j % 8) for i, j in places}) == 64
    torch.testing.assert_close(pick(dense(image), places), expected, rtol=0, atol=1e-9)


def test_a_pickled_dense_form_answers_alike():
    dense, image = (
        DenseForm(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.ReLU())),
        torch.randn(1, 1, 9, 9),
    )
    assert torch.equal(pickle.loads(pickle.dumps(dense.eval()))(image), dense(image))
