"""The handwritten step trains a model as autograd does, or refuses it."""

from __future__ import annotations

import copy
import logging
import types
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bvae.beta_vae import BetaVAE, Downsample, Upsample, one_hot
from bvae.config import TrainingConfig
from bvae.losses import BetaVAELoss
from bvae.training.cpu_bf16 import HandwrittenStep, unsupported
from bvae.training.cpu_layers import LAYERS
from bvae.training.step import AutogradStep, TrainStep, make_step

pytestmark = pytest.mark.unit

LOSS = BetaVAELoss(gamma=1.0, weight=torch.linspace(0.1, 5, 10), beta=0.1)
BF16 = TrainingConfig(precision="bf16")


def new_model(*, grid_size: int = 4, latent_dim: int = 3) -> BetaVAE:
    torch.manual_seed(0)
    return BetaVAE(grid_size=grid_size, latent_dim=latent_dim)


EMPTY = new_model()
EMPTY.encoder, EMPTY.decoder = nn.Sequential(), nn.Sequential()


def model_of(encoder: Iterable[nn.Module], decoder: Iterable[nn.Module]) -> BetaVAE:
    model = copy.deepcopy(EMPTY)
    model.encoder, model.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
    return model


def narrow_model() -> BetaVAE:
    """Return a model with every supported layer, for grids of 4×4."""
    torch.manual_seed(0)
    return model_of(
        [nn.Conv2d(10, 2, 3, padding=1), nn.ReLU(), Downsample(2, 3), nn.Flatten(), nn.Linear(12, 4)],
        [nn.Linear(2, 12), nn.ReLU(), nn.Unflatten(1, (3, 2, 2)), Upsample(3, 10)],
    )


def random_grids(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 10, (batch, height, width), generator=generator, dtype=torch.uint8)


EXAMPLE = random_grids(2, 4, 4)


def trained(step: TrainStep, model: nn.Module, target: Tensor) -> dict[str, Tensor]:
    """Return loss, gradient norm, weights and optimizer state after two steps."""
    noise, found = torch.Generator().manual_seed(2), {}
    for number in range(2):
        terms, norm = step.forward_backward(target, noise)
        found |= {f"loss {number}": terms.total.double(), f"norm {number}": norm.double()}
        step.step(1e-3)
    step.sync_model()
    return found | model.state_dict() | step.tensors()


def assert_trained_as_by_autograd(model: BetaVAE, target: Tensor) -> None:
    ours, theirs = (copy.deepcopy(model).double() for _ in range(2))
    found = trained(HandwrittenStep(ours, LOSS, max_norm=1.0, dtype=torch.float64), ours, target)
    expected = trained(AutogradStep(theirs, LOSS, max_norm=1.0, bf16=False), theirs, target)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# Layers of maps and layers of vectors, by whether the handwritten step supports them.

MAPS: dict[bool, list[Callable[[int, int], nn.Module]]] = {
    True: [
        lambda c, d: nn.Conv2d(c, d, 3, padding=1),
        lambda c, d: nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True)),
        lambda c, d: nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(), nn.Conv2d(c, d, 3, padding=1)),
    ],
    False: [
        lambda c, d: nn.Conv2d(c, d, 3, padding=1, padding_mode="circular"),
        lambda c, d: nn.Conv2d(c, d, 3, padding=1, padding_mode="replicate"),
        lambda c, d: nn.Conv2d(c, d, 3, padding=2, dilation=2),
        lambda c, d: nn.Conv2d(c, d, 3, padding=1, bias=False),
        lambda c, d: nn.Conv2d(c, c * d, 3, padding=1, groups=c),
        lambda c, d: nn.Conv2d(c, d, 1),
        lambda c, d: nn.ConvTranspose2d(c, d, 3, padding=1),
        lambda c, d: nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.GELU()),
        lambda c, d: nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, d, 3, padding=1)),
        lambda c, d: nn.Sequential(nn.Dropout2d(), nn.Conv2d(c, d, 3, padding=1)),
    ],
}
VECTORS: dict[bool, list[Callable[[int, int], nn.Module]]] = {
    True: [nn.Linear, lambda n, m: nn.Sequential(nn.Linear(n, m), nn.ReLU())],
    False: [
        lambda n, m: nn.Linear(n, m, bias=False),
        lambda n, m: nn.Sequential(nn.Linear(n, m), nn.Tanh()),
        lambda n, m: nn.Sequential(nn.Linear(n, m), nn.LayerNorm(m)),
        lambda n, m: nn.Sequential(nn.Linear(n, m), nn.Dropout(0.5)),
        lambda n, m: nn.Sequential(nn.Linear(n, m), nn.Identity()),
    ],
}
few = st.integers(1, 3)
kinds = st.sampled_from(["keep", "keep", "relu"])


def channels_of(layer: nn.Module) -> int:
    return [m for m in layer.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][-1].out_channels


@st.composite
def map_layers(
    draw: st.DrawFn, supported: st.SearchStrategy[bool], shape: tuple[int, int, int], most: int = 4
) -> tuple[list[nn.Module], tuple[int, int, int]]:
    """Draw layers of maps `[C, H, W]`; return them and their output shape."""
    layers: list[nn.Module] = []
    channels, height, width = shape
    for kind in draw(st.lists(st.sampled_from(["keep", "keep", "relu", "down", "up"]), max_size=most)):
        if kind == "relu":
            layers.append(nn.ReLU())
            continue
        if kind == "keep":
            layers.append(draw(st.sampled_from(MAPS[draw(supported)]))(channels, draw(few)))
        elif kind == "down":
            layers.append(Downsample(channels, draw(few)))
            height, width = (height + 1) // 2, (width + 1) // 2
        elif max(height, width) > 8:
            continue
        else:
            layers.append(Upsample(channels, draw(few)))
            height, width = 2 * height, 2 * width
        channels = channels_of(layers[-1])
    return layers, (channels, height, width)


@st.composite
def vector_layers(
    draw: st.DrawFn, supported: st.SearchStrategy[bool], size: int, most: int = 3
) -> tuple[list[nn.Module], int]:
    """Draw layers of vectors `[N]`; return them and their output size."""
    layers: list[nn.Module] = []
    for kind in draw(st.lists(kinds, max_size=most)):
        if kind == "relu":
            layers.append(nn.ReLU())
        else:
            width = draw(st.integers(1, 12))
            layers.append(draw(st.sampled_from(VECTORS[draw(supported)]))(size, width))
            size = width
    return layers, size


@st.composite
def models(draw: st.DrawFn, supported: st.SearchStrategy[bool]) -> tuple[BetaVAE, tuple[int, int]]:
    """Draw a BetaVAE with random layers, and the height and width of its grids."""
    torch.manual_seed(draw(st.integers(0, 99)))
    height, width = draw(st.sampled_from([(4, 4), (1, 1), (2, 6), (5, 3), (8, 8), (1, 4)]))
    maps, shape = draw(map_layers(supported, (10, height, width)))
    size = shape[0] * shape[1] * shape[2]
    encoder = [*maps, nn.Flatten()]
    if draw(st.booleans()):  # unflatten to maps once more
        vectors, size = draw(vector_layers(supported, size))
        unflattened = draw(st.sampled_from([(size, 1, 1), (1, 1, size), (1, size, 1)]))
        again, shape = draw(map_layers(supported, unflattened, most=2))
        encoder += [*vectors, nn.Unflatten(1, unflattened), *again, nn.Flatten()]
        size = shape[0] * shape[1] * shape[2]
    vectors, size = draw(vector_layers(supported, size))
    encoder += vectors
    if size % 2 or draw(st.booleans()):
        encoder.append(nn.Linear(size, size := 2 * draw(few)))
    assume(size <= 200)

    vectors, size = draw(vector_layers(supported, size // 2))
    channels, halved = draw(few), height % 2 == width % 2 == 0 and draw(st.booleans())
    shape = (channels, height // 2, width // 2) if halved else (channels, height, width)
    if size % (shape[1] * shape[2]) == 0 and draw(st.booleans()):
        shape = (size // (shape[1] * shape[2]), *shape[1:])
    else:
        vectors += [
            nn.Linear(size, shape[0] * shape[1] * shape[2]),
            *draw(st.sampled_from([[], [nn.ReLU()]])),
        ]
    decoder = [*vectors, nn.Unflatten(1, shape)]
    if halved:
        decoder.append(Upsample(shape[0], channels))
    decoder.append(nn.ReLU() if draw(st.booleans()) else nn.Sequential())
    last = channels if halved else shape[0]
    if last != 10 or draw(st.booleans()):
        decoder.append(nn.Conv2d(last, 10, 3, padding=1))
    return model_of(encoder, decoder), (height, width)


@given(models(st.just(True)), st.integers(1, 3))
def test_any_sequence_of_supported_layers_is_trained_as_by_autograd(
    drawn: tuple[BetaVAE, tuple[int, int]], batch: int
) -> None:
    model, size = drawn
    assume(any(True for _ in model.parameters()))
    target = random_grids(batch, *size)
    assert unsupported(model, target) is None
    assert_trained_as_by_autograd(model, target)


def is_plain(layer: nn.Module) -> bool:
    """Return whether a drawn layer has a supported type and supported attributes."""
    if type(layer) is nn.Conv2d:
        return repr(layer) == repr(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1))
    return type(layer) in LAYERS and getattr(layer, "bias", True) is not None


@given(models(st.sampled_from([True, True, False])), st.integers(1, 3))
def test_a_sequence_is_trained_as_by_autograd_or_declined_for_one_of_its_layers(
    drawn: tuple[BetaVAE, tuple[int, int]], batch: int
) -> None:
    model, size = drawn
    assume(any(True for _ in model.parameters()))
    if unsupported(model) is None:
        assert_trained_as_by_autograd(model, random_grids(batch, *size))
    else:
        layers = [module for module in model.modules() if not isinstance(module, BetaVAE | nn.Sequential)]
        assert not all(map(is_plain, layers))


def other_values(value: object) -> Iterator[object]:
    """Yield other values of an attribute of a module."""
    match value:
        case bool():
            yield not value
        case int():
            yield from (value + 1, value - 1, 2 * value)
        case str():
            yield from ("circular", "reflect", "replicate")
        case tuple():
            yield from (
                tuple(n + 1 for n in value),
                tuple(n - 1 for n in value),
                (*value[:-1], value[-1] + 1),
            )
            yield (*value[1:], value[0])


def is_trained_by_autograd(model: BetaVAE, target: Tensor) -> bool:
    try:
        trained(AutogradStep(copy.deepcopy(model), LOSS, max_norm=1.0, bf16=False), model, target)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return True


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_changed_attribute_is_declined_or_trained_as_by_autograd(kind: type[nn.Module]) -> None:
    target, accepted = random_grids(2, 4, 4), set[str]()
    path = {type(module): name for name, module in narrow_model().named_modules()}
    attributes = vars(narrow_model().get_submodule(path[kind]))
    for name in [name for name in attributes if not name.startswith("_")]:
        for value in other_values(attributes[name]):
            model = narrow_model()
            setattr(model.get_submodule(path[kind]), name, value)
            if unsupported(model) is None and is_trained_by_autograd(model, target):
                assert_trained_as_by_autograd(model, target)
                accepted.add(name)
    assert accepted >= {"training"} | ({"inplace"} & attributes.keys())  # which change no output


def replace(path: str, module: nn.Module) -> Callable[[BetaVAE], object]:
    chain, i = path.split(".")
    return lambda model: model.get_submodule(chain).__setitem__(int(i), module)


def halve(*arguments: Tensor) -> Tensor:
    return arguments[-1] / 2


def share_weights(model: BetaVAE) -> None:
    model.encoder[9] = nn.Linear(128, 128)
    model.encoder[7] = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 6))
    model.encoder[7][0].weight = model.encoder[9].weight


def share_memory(model: BetaVAE) -> None:
    model.encoder.insert(9, linear := nn.Linear(128, 128))
    model.encoder.insert(9, other := nn.Linear(128, 128))
    other.weight.data = linear.weight.data


def expand_bias(model: BetaVAE) -> None:
    model.decoder[0].bias = nn.Parameter(torch.zeros(1))


def widen_kernel(model: BetaVAE) -> None:
    model.decoder[-1].weight = nn.Parameter(torch.randn(10, 32, 5, 3))


def use_twice(model: BetaVAE) -> None:
    linear = nn.Linear(128, 128)
    model.decoder.insert(1, linear)
    model.decoder.insert(2, linear)


def hook_gradient(model: BetaVAE) -> None:
    model.decoder[0].weight.register_hook(halve)


def own_forward(model: BetaVAE) -> None:
    model.decoder[-1].forward = lambda maps: nn.functional.conv2d(maps, model.decoder[-1].weight, padding=1)


def own_decode(model: BetaVAE) -> None:
    model.decode = types.MethodType(lambda self, latent: self.decoder(latent / 2), model)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Widened(BetaVAE):
    pass


class TwiceInARow(nn.Sequential):
    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch) * 2


DECLINED: dict[str, tuple[Callable[[BetaVAE], object], str]] = {
    "circular padding": (
        replace("decoder.9", nn.Conv2d(32, 10, 3, padding=1, padding_mode="circular")),
        r"decoder\.9 \(Conv2d\): padding_mode is 'circular' and not 'zeros'",
    ),
    "dilation": (replace("decoder.9", nn.Conv2d(32, 10, 3, padding=2, dilation=2)), "padding is"),
    "groups": (replace("decoder.9", nn.Conv2d(32, 10, 3, padding=1, groups=2)), "groups is 2"),
    "no bias": (replace("decoder.9", nn.Conv2d(32, 10, 3, padding=1, bias=False)), r"decoder\.9\.bias is no"),
    "kernel": (replace("decoder.9", nn.Conv2d(32, 10, 5, padding=2)), r"kernel_size is \(5, 5\)"),
    "plain transposed": (
        replace("decoder.5", nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1)),
        r"decoder\.5 \(ConvTranspose2d\) has no handwritten layer",
    ),
    "linear without bias": (replace("decoder.0", nn.Linear(3, 128, bias=False)), r"decoder\.0\.bias is no"),
    "GELU": (replace("decoder.1", nn.GELU()), r"decoder\.1 \(GELU\) has no handwritten layer"),
    "BatchNorm": (replace("decoder.6", nn.BatchNorm2d(64)), "BatchNorm2d"),
    "Dropout": (replace("decoder.1", nn.Dropout(0.5)), "Dropout"),
    "no module": (lambda model: setattr(model, "decoder", nn.ModuleList(model.decoder)), "ModuleList"),
    "own sequence": (lambda model: setattr(model, "decoder", TwiceInARow(*model.decoder)), "TwiceInARow"),
    "linear of maps": (lambda model: model.decoder.append(nn.Linear(4, 4)), "is applied to maps"),
    "maps at the end": (lambda model: model.encoder.append(nn.Unflatten(1, (6, 1, 1))), "returns maps"),
    "forward hook": (lambda model: model.decoder[0].register_forward_hook(halve), "has a hook"),
    "forward pre-hook": (lambda model: model.decoder[0].register_forward_pre_hook(halve), "has a hook"),
    "backward hook": (
        lambda model: model.decoder[0].register_full_backward_hook(lambda *_: None),
        "has a hook",
    ),
    "backward pre-hook": (
        lambda model: model.decoder[0].register_full_backward_pre_hook(lambda *_: None),
        "has a hook",
    ),
    "hook of a sequence": (lambda model: model.decoder.register_forward_hook(halve), "decoder has a hook"),
    "hook of a gradient": (hook_gradient, "has a hook"),
    "accumulation hook": (
        lambda model: model.decoder[0].weight.register_post_accumulate_grad_hook(lambda _: None),
        "has a hook",
    ),
    "frozen": (lambda model: model.encoder[0].bias.requires_grad_(False), r"encoder\.0\.bias is frozen"),
    "parametrization": (
        lambda model: nn.utils.parametrize.register_parametrization(model.decoder[0], "weight", Half()),
        "ParametrizedLinear",
    ),
    "weight norm": (lambda model: parametrizations.weight_norm(model.decoder[9]), "ParametrizedConv2d"),
    "pruning": (lambda model: prune.l1_unstructured(model.decoder[0], "weight", 0.5), "has a hook"),
    "shared weights": (share_weights, "parameters share memory"),
    "shared memory": (share_memory, "parameters share memory"),
    "a layer used twice": (use_twice, "parameters share memory"),
    "broadcast bias": (expand_bias, r"shape \[1\]; expected \(128,\)"),
    "other kernel": (widen_kernel, r"shape \[10, 32, 5, 3\]"),
    "further parameter": (
        lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(2))),
        r"scale is a parameter of shape \[2\]; expected none",
    ),
    "half precision": (lambda model: model.half(), "float16"),
    "mixed precision": (lambda model: model.decoder.double(), "float64"),
    "forward of an instance": (own_forward, r"decoder\.9 has its own method forward"),
    "decode of an instance": (own_decode, "the model has its own method decode"),
    "subclass": (lambda model: setattr(model, "__class__", Widened), "Widened and not a BetaVAE"),
    "nothing to train": (
        lambda model: (
            setattr(model, "encoder", nn.Sequential(nn.Flatten())),
            setattr(model, "decoder", nn.Sequential(nn.Unflatten(1, (5, 4, 4)))),
        ),
        "there is no parameter",
    ),
}


@pytest.mark.parametrize("change", DECLINED)
def test_unsupported_models_are_trained_by_autograd_and_the_log_says_why(
    change: str, caplog: pytest.LogCaptureFixture
) -> None:
    apply, reason = DECLINED[change]
    model = new_model()
    apply(model)
    with caplog.at_level(logging.INFO, logger="bvae"):
        assert type(make_step(model, LOSS, BF16, EXAMPLE)) is AutogradStep
    (line,) = caplog.messages
    assert line.startswith("gradients by autograd, which is slower than the handwritten step: ")
    with pytest.raises(ValueError, match=reason):
        HandwrittenStep(model, LOSS, max_norm=1.0)


def clamped_encode(model: BetaVAE, grids: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = model.encoder(one_hot(grids)).chunk(2, dim=1)
    return mean, log_variance.clamp(-0.01, 0.01)


def dropping_encode(model: BetaVAE, grids: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = model.encoder(nn.functional.dropout(one_hot(grids))).chunk(2, dim=1)
    return mean, log_variance


def capped_decode(model: BetaVAE, latent: Tensor) -> Tensor:
    return model.decoder(latent).tanh()


@pytest.mark.parametrize("edited", [clamped_encode, dropping_encode, capped_decode])
def test_a_model_with_an_edited_encode_or_decode_is_trained_by_autograd(
    edited: Callable[..., object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name, model = edited.__name__.split("_")[1], new_model()
    monkeypatch.setattr(BetaVAE, name, edited)
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="bvae"):
        assert type(make_step(model, LOSS, BF16, EXAMPLE)) is AutogradStep
    assert f"{name} does more than apply the {name}r" in caplog.text
    assert torch.initial_seed() == 0
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_an_encode_that_changes_during_training_is_refused() -> None:
    model = new_model()
    step = HandwrittenStep(model, LOSS, max_norm=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BetaVAE, "encode", clamped_encode)
        with pytest.raises(ValueError, match=r"encode does more .* use --precision=fp32"):
            step.forward_backward(EXAMPLE, torch.Generator())


def test_a_model_with_values_that_are_not_finite_is_supported() -> None:
    for value in (torch.nan, torch.inf, 3e38):
        model = new_model()
        with torch.no_grad():
            model.encoder[7].weight.fill_(value)
        assert unsupported(model, EXAMPLE) is None


def test_a_hook_for_all_modules_is_detected() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert unsupported(new_model()) == "hooks are registered for all modules"
    finally:
        handle.remove()
    assert unsupported(new_model()) is None


def test_nothing_is_logged_if_autograd_was_requested(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bvae"):
        make_step(new_model(), LOSS, TrainingConfig(precision="fp32"), EXAMPLE)
        make_step(new_model(), LOSS, BF16, EXAMPLE)
    assert not caplog.messages


@pytest.mark.parametrize("change", ["circular padding", "GELU", "BatchNorm", "groups", "no bias"])
def test_gradients_of_changed_decoders_agree_in_bfloat16_and_float32(change: str) -> None:
    """Rounding changes the gradient by 5 %. Zero padding instead of circular padding changes it by 35 %."""
    apply, _ = DECLINED[change]
    model, target, gradients = new_model(), random_grids(16, 4, 4), {}
    apply(model)
    with torch.no_grad():
        model.encoder[-1].bias[3:] = -20  # makes the noise, which differs, negligible
    for precision in ("bf16", "fp32"):
        training = TrainingConfig(precision=precision, max_gradient_norm=1e6)
        step = make_step(copy.deepcopy(model), LOSS, training, target)
        step.forward_backward(target, torch.Generator().manual_seed(0))
        step.step(0.0)
        step.sync_model()
        moments = [value for name, value in step.tensors().items() if name.endswith(".exp_avg")]
        gradients[precision] = torch.cat([moment.flatten() for moment in moments])  # 0.1 × gradient
    assert (gradients["bf16"] - gradients["fp32"]).norm() < 0.1 * gradients["fp32"].norm()


def test_layers_changed_after_a_step_are_trained_as_changed() -> None:
    target, noise, states = random_grids(4, 4, 4), torch.Generator(), []
    for kind in (HandwrittenStep, AutogradStep):
        model = new_model().double()
        options = {"dtype": torch.float64} if kind is HandwrittenStep else {"bf16": False}
        step = kind(model, LOSS, max_norm=1.0, **options)
        trained(step, model, target)
        model.decoder.append(nn.ReLU())
        states.append(trained(step, model, target))
        if kind is HandwrittenStep:
            model.decoder.append(nn.GELU())
            with pytest.raises(ValueError, match=r"decoder\.11 \(GELU\).*use --precision=fp32"):
                step.forward_backward(target, noise)
            model.decoder = nn.Sequential(*[*model.decoder][:-2], nn.Conv2d(10, 10, 3, padding=1).double())
            with pytest.raises(ValueError, match="parameters of the model were added"):
                step.forward_backward(target, noise)
    torch.testing.assert_close(*states)
