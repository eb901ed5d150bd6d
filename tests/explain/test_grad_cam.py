"""Grad-CAM: numbers by hand, the laws that hold for every network, captum's maps, and no trace left."""

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from retinue.errors import ArgumentError, NonFiniteError, ShapeError
from retinue.explain import GradCAM, heat_maps
from retinue.explain.grad_cam import VARIANTS, gradcam, gradcam_plus_plus, layercam, predicted, score
from retinue.models import tiny
from retinue.models.feature_maps import as_map
from retinue.models.tiny import KINDS

A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]])


class Head(nn.Module):
    """The image is the map; y is any function of it."""

    def __init__(self, y: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.map, self.y = nn.Identity(), y

    def forward(self, x: Tensor) -> Any:
        return self.y(self.map(x))


def two_logits(y: Tensor) -> Tensor:
    return torch.stack([-y, y], 1)


# --- by hand ---------------------------------------------------------------------------------------------------------------------------


def test_the_map_of_two_channels_by_hand() -> None:
    model = Head(lambda x: two_logits(2 * x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2))))
    slope = torch.tensor([0.5, -0.25])[None, :, None, None].expand(1, 2, 2, 2)  # alpha, as the page has it
    assert gradcam(A, slope).relu().tolist() == [[[0, 0.25], [1, 1.75]]]
    assert_close(GradCAM(model, "map")(A, target=1), torch.tensor([[[0, 0.25 / 1.75], [1 / 1.75, 1]]]), rtol=0, atol=1e-6)


def test_grad_cam_plus_plus_by_hand() -> None:
    # g = 0.5 on the first channel, whose sum is 10: alpha = 1 / (2 + 5), weight 4 * 0.5 / 7; the second channel's gradient is negative
    slope = torch.tensor([0.5, -0.25])[None, :, None, None].expand(1, 2, 2, 2)
    assert_close(gradcam_plus_plus(A, slope), A[:, 0] * 2 / 7)
    # the formula as printed, at random positive gradients
    g = torch.rand(1, 2, 2, 2) + 0.1
    alpha = g**2 / (2 * g**2 + A.sum((2, 3), keepdim=True) * g**3)
    assert_close(gradcam_plus_plus(A, g), ((alpha * g).sum((2, 3), keepdim=True) * A).sum(1))


def test_layercam_by_hand() -> None:
    slope = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]], [[-1.0, 1.0], [1.0, 0.0]]]])
    assert layercam(A, slope).tolist() == [[[1, 3], [2, 8]]]


def test_the_input_gradient_is_the_largest_over_the_channels() -> None:
    weight = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[-2.0, 1.0], [0.5, 0.0]]]])
    maps = GradCAM(Head(lambda x: two_logits((x * weight).sum((1, 2, 3)))), variant="gradient")(A, target=1)
    assert maps.tolist() == [[[1, 0.5], [0.25, 0]]]


def test_the_map_is_resized_bilinearly_without_aligned_corners() -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2, bias=False))
    nn.init.constant_(model[2].weight, 1.0)
    x = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    rows = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # weights of the four output places on the two cells
    assert_close(GradCAM(model, "0")(x, 0)[0], rows @ torch.tensor([[0.0, 0.25], [0.5, 1.0]]) @ rows.T)


def test_a_guided_gradient_passes_positive_parts_alone() -> None:
    # y = 3 relu(a) - 2 relu(b) + relu(c): at a rectifier the gradient passes where both it and the input are positive
    weight = torch.tensor([3.0, -2.0, 1.0, 5.0])

    def y(x: Tensor) -> Tensor:
        return two_logits((x.relu().flatten(1) * weight).sum(1))

    model = Head(y)
    x = torch.tensor([[[[1.0, 1.0], [2.0, -1.0]]]])
    guided = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    plain = GradCAM(model, "map")(x, 1)[0]
    assert_close(GradCAM(model, "map", "guided")(x, 1)[0], plain * guided / (plain * guided).max())
    assert GradCAM(model, variant="gradient")(x, 1)[0].tolist() == [[1, pytest.approx(2 / 3)], [pytest.approx(1 / 3), 0]]


# --- laws ------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_behind_average_and_one_linear_layer_it_is_the_class_activation_map(seed: int) -> None:
    model = tiny("timm_cnn").eval()
    x = images(2, 3, 32, 32, seed=seed)
    with torch.no_grad():
        last = model.forward_features(x)  # type: ignore[operator]
        cam = torch.einsum("k,nkuv->nuv", model.get_submodule("fc").weight[3], last).relu()  # type: ignore[arg-type]
        cam = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)
    shown = F.interpolate(cam[:, None], size=(32, 32), mode="bilinear")[:, 0]
    assert_close(GradCAM(model, "layer4")(x, 3), shown, rtol=1e-4, atol=1e-5)


@given(st.floats(0.1, 50), st.floats(-20, 20), st.sampled_from(["gradcam", "layercam", "gradient", "guided"]))
def test_constants_and_positive_factors_of_the_logit_change_nothing(factor: float, constant: float, variant: Any) -> None:
    model, x = tiny("bare").eval(), images(2, 3, 16, 16)
    explain = GradCAM(model, variant=variant)
    assert_close(explain(x, lambda logits: logits[:, 2] * factor + constant), explain(x, 2), rtol=1e-3, atol=1e-4)


def test_a_negative_factor_gives_the_map_of_the_other_class() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    x, explain = images(3, 1, 9, 9), GradCAM(model)
    zero, one = explain(x, 0), explain(x, 1)
    assert_close(zero, explain(x, lambda logit: -2 * logit[:, 0]))
    assert_close(one, explain(x, lambda logit: 2 * logit[:, 0]))
    assert not torch.allclose(zero, one)
    assert_close(explain(x), torch.where((model(x) > 0)[:, :, None], one, zero))  # the predicted class
    flat = nn.Sequential(*model, nn.Flatten(0))  # one logit of shape (N,) is the same network
    assert_close(GradCAM(flat, "1")(x, 0), GradCAM(model, "1")(x, 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_logit_that_falls_with_every_channel_gives_zeros(variant: Any) -> None:
    model = Head(lambda x: two_logits(-x.relu().sum((1, 2, 3))))
    maps = GradCAM(model, "map", variant)(A, 1)
    assert torch.isfinite(maps).all()
    assert variant == "gradient" or maps.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_on_every_backbone(kind: Any, variant: Any) -> None:
    model, x = tiny(kind), images(4, 3, 32, 32)
    target = predicted(model.eval()(x))  # of another class nothing may speak for it
    maps = GradCAM(model, variant=variant)(x)
    assert maps.shape == (4, 32, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert 0 <= maps.min() <= maps.max() <= 1
    assert (maps.flatten(1).std(1) > 0.01).sum() >= 3
    alone = torch.cat([heat_maps(model, x[i : i + 1], target[i], variant=variant) for i in range(4)])
    assert_close(maps, alone, rtol=1e-3, atol=1e-4)  # one batch is many single images


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("mobilenetv2_100", "bn2"),  # behind the last convolution, not the last block
        ("convnext_atto", "norm_pre"),
        ("swin_tiny_patch4_window7_224", "norm"),  # channels last
        ("vit_tiny_patch16_224", "blocks.1.norm1"),  # the class token alone is read: what the last attention sees
        ("deit_tiny_distilled_patch16_224", "blocks.1.norm1"),  # two tokens before the patches
        ("vit_base_patch16_siglip_gap_224", "norm"),  # the average is read
        ("cait_xxs24_224", "blocks_token_only.1.attn.v"),
        ("xcit_nano_12_p16_224", "cls_attn_blocks.1.attn.v"),
        ("mixer_s32_224", "norm"),
        ("pvt_v2_b0", "stages"),
        ("mambaout_femto", "stages"),  # channels last as well
        ("fastvit_t8", "final_conv"),
    ],
)
def test_the_layer_is_found_in_any_network_of_timm(name: str, layer: str) -> None:
    small: dict[str, Any] = {"vit": {"depth": 2}, "deit": {"depth": 2}, "cait": {"depth": 2}}.get(name.split("_")[0], {})
    if "siglip" in name:
        small |= {"embed_dim": 48, "num_heads": 3}
    model = timm.create_model(name, num_classes=5, **small)
    nn.init.normal_(classifier.weight) if isinstance(classifier := model.get_classifier(), nn.Linear) else None  # Mixer's are zero
    height = model.default_cfg["input_size"][-1]
    explain = GradCAM(model)
    maps = explain(images(1, 3, height, height))
    assert explain.layer == layer
    assert maps.shape == (1, height, height)
    assert maps.std() > 0.01


def test_images_need_not_be_square() -> None:
    x = images(2, 3, 48, 64)
    assert GradCAM(tiny("timm_cnn", input_size=48))(x).shape == (2, 48, 64)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 64), embed_dim=24, depth=2, num_heads=2, num_classes=3)
    explain = GradCAM(model)
    assert explain(x).shape == (2, 48, 64)
    assert explain.layer == "blocks.1.norm1"


def test_layouts() -> None:
    grid = torch.arange(12.0).view(1, 1, 3, 4)
    tokens = torch.cat([torch.full((1, 5, 1), -1.0), grid.flatten(2).transpose(1, 2)], 1)
    for laid in (grid, grid.permute(0, 2, 3, 1), tokens, tokens[:, 4:], tokens[:, 5:]):
        found = as_map(laid, (48, 64))
        assert found is not None
        assert torch.equal(found, grid)
    assert torch.equal(as_map(tokens[:, 2:], (48, 64), prefix_tokens=3), grid)  # type: ignore[arg-type]
    assert as_map(torch.zeros(1, 7, 7, 7), (28, 28), channels_last=True).stride() == torch.zeros(1, 7, 7, 7).permute(0, 3, 1, 2).stride()  # type: ignore[union-attr]
    for none in (torch.zeros(2, 8), torch.zeros(2, 8, 1, 1), torch.zeros(2, 3, 49, 16), torch.zeros(2, 47, 8), torch.zeros(2, 1, 8)):
        assert as_map(none, (28, 28)) is None


def test_the_last_map_is_not_the_map_of_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Upsample(scale_factor=2))
    explain = GradCAM(model)
    region = torch.zeros(32, 32)
    region[:8] = 1
    maps = explain(images(2, 3, 16, 16), lambda logits: (logits[:, 2] * region).sum((1, 2)))  # a class in a region
    assert explain.layer == "1"
    assert maps.shape == (2, 16, 16)


def test_a_network_that_gives_several_tensors_is_explained_by_a_function() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 6, 3)
            self.boxes = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            pooled = self.body(x).relu().mean((2, 3))
            return {"boxes": self.boxes(pooled), "scores": pooled}

    explain = GradCAM(Detector())
    assert explain(images(2, 3, 9, 9), lambda found: found["scores"][:, 1]).shape == (2, 9, 9)
    assert explain.layer == "body"
    with pytest.raises(ShapeError, match=r"must give logits of shape \(N, classes\), got dict\. Give a function as `target`"):
        explain(images(2, 3, 9, 9))


def test_the_layer_may_give_a_tuple() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[str, Tensor]:
            return "map", self.conv(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[1].relu().mean((2, 3))

    model, x = Net(), images(2, 3, 9, 9)
    assert_close(GradCAM(model, "pair")(x, 1), GradCAM(model, "pair.conv")(x, 1))


# --- peers -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["layer2", "layer3.0.bn1", "layer4"])
def test_captum_gives_the_same_maps(layer: str) -> None:
    model, x = tiny("timm_cnn", input_size=64).eval(), images(4, 3, 64, 64)
    target = torch.tensor([0, 3, 5, 9])
    theirs = LayerGradCam(model, model.get_submodule(layer)).attribute(x, target, relu_attributions=True)
    theirs = theirs / theirs.amax((1, 2, 3), keepdim=True).clamp(min=1e-30)  # all zero where nothing speaks for the class
    theirs = LayerGradCam.interpolate(theirs, (64, 64), interpolate_mode="bilinear")[:, 0].detach()
    assert_close(GradCAM(model, layer)(x, target), theirs, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU", "ignore:Input Tensor 0 did not already require")
def test_captum_gives_the_same_guided_product() -> None:
    model, x = tiny("timm_cnn").eval(), images(3, 3, 32, 32)
    target = predicted(model(x))
    theirs = GuidedBackprop(model).attribute(x, target).abs().amax(1).detach() * GradCAM(model, "layer4")(x)
    assert theirs.amax((1, 2)).min() > 0
    assert_close(GradCAM(model, "layer4", "guided")(x), theirs / theirs.amax((1, 2), keepdim=True), rtol=0, atol=1e-5)


# --- no trace --------------------------------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    flags = [(parameter.requires_grad, None if parameter.grad is None else parameter.grad.tolist()) for parameter in model.parameters()]
    return [hooks, flags, [part.training for part in model.modules()], {name: t.tolist() for name, t in model.state_dict().items()}]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_is_afterwards_as_it_was(variant: Any) -> None:
    model = tiny("timm_cnn").train()
    model.get_submodule("layer1").requires_grad_(False).eval()
    model(images(2, 3, 32, 32)).sum().backward()
    before, x = state(model), images(2, 3, 32, 32, seed=1)
    kept = x.clone()
    with GradCAM(model, variant=variant) as explain:
        explain(x)
        assert not model.training
        explain(x, 3)
    assert state(model) == before
    assert torch.equal(x, kept)
    assert not x.requires_grad
    with pytest.raises(ArgumentError), GradCAM(model, variant=variant) as explain:
        explain(x, 99)
    assert state(model) == before
    GradCAM(model, variant=variant)(x)
    assert state(model) == before


def test_inside_with_the_network_can_be_used_as_usual() -> None:
    model, x = tiny("timm_cnn").eval(), images(2, 3, 32, 32)
    with GradCAM(model) as explain, explain:
        maps = explain(x, 1)
        plain = torch.ones(1, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x * plain).sum(), plain)  # the graph is cut only while a map is computed
        assert slope.abs() > 0
    assert torch.equal(explain(x, 1), maps)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_networks_and_callers_without_gradients_get_the_same_map(variant: Any) -> None:
    model, x = tiny("timm_cnn").eval(), images(2, 3, 32, 32)
    expected = GradCAM(model, variant=variant)(x, 1)
    with torch.no_grad():
        assert torch.equal(GradCAM(model, variant=variant)(x, 1), expected)
    with torch.inference_mode():
        assert torch.equal(GradCAM(model, variant=variant)(x + 0, 1), expected)
    model.requires_grad_(False)
    assert torch.equal(GradCAM(model, variant=variant)(x, 1), expected)


def test_in_place_activations_behind_and_before_the_layer() -> None:
    torch.manual_seed(1)
    convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)]

    def network(inplace: bool) -> nn.Sequential:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        nn.init.constant_(head[-1].weight, 0.3)
        return nn.Sequential(nn.ReLU(inplace), convs[0], nn.ReLU(inplace), convs[1], nn.ReLU(inplace), *head)

    x = images(2, 3, 12, 12)
    for layer, variant in [("3", "gradcam"), ("4", "gradcam"), ("1", "layercam"), (None, "gradient"), (None, "guided")]:
        given = x.clone()
        mine = GradCAM(network(True), layer, variant)(given, 2)  # type: ignore[arg-type]
        assert_close(mine, GradCAM(network(False), layer, variant)(x, 2))  # type: ignore[arg-type]
        assert torch.equal(given, x)


def test_recomputed_blocks_give_the_same_map() -> None:
    class Recomputed(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            self.on = on
            self.block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, x, use_reentrant=False) if self.on else self.block(x)
            return self.head(x.mean((2, 3)))

    plain, saving = Recomputed(False), Recomputed(True)
    saving.load_state_dict(plain.state_dict())
    x = images(2, 3, 12, 12)
    for layer in ("block", "block.1"):
        assert_close(GradCAM(saving, layer)(x, 2), GradCAM(plain, layer)(x, 2))


def test_memory_does_not_grow_over_200_calls() -> None:
    model, x = tiny("bare").eval(), images(1, 3, 16, 16)
    explain = GradCAM(model)

    def tensors() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    explain(x)
    before = tensors()
    with explain:
        for _ in range(100):
            explain(x)
    for _ in range(50):
        explain(x, 1)
        GradCAM(model, variant="guided")(x)
    assert tensors() == before


def test_nothing_of_a_call_waits_for_the_garbage_collector() -> None:
    model, alive = tiny("timm_cnn").eval(), []
    explain = GradCAM(model, "layer4")
    hook = model.get_submodule("layer4").register_forward_hook(lambda part, args, y: alive.append(weakref.ref(y)))
    gc.disable()
    try:
        explain(images(2, 3, 32, 32))
        assert [one() for one in alive] == [None]
    finally:
        gc.enable()
        hook.remove()


# --- refused ---------------------------------------------------------------------------------------------------------------------------


def test_unknown_layers_and_variants_are_answered_with_near_misses() -> None:
    model = tiny("timm_cnn")
    with pytest.raises(
        ArgumentError, match=r'GradCAM: no layer is called "layer5"\. Did you mean layer\d, layer\d, layer\d\? All names: model'
    ):
        GradCAM(model, "layer5")
    with pytest.raises(ArgumentError, match=r'no variant is called "gradcan"\. Did you mean gradcam'):
        GradCAM(model, variant="gradcan")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"the Linear given as `layer` is not in the network\. Take one of model\.named_modules\(\)\."):
        GradCAM(model, nn.Linear(2, 2))
    assert GradCAM(model, model.get_submodule("layer3")).layer == "layer3"


def test_layers_without_a_map_are_refused() -> None:
    model, x = tiny("timm_cnn"), images(2, 3, 32, 32)
    with pytest.raises(
        ShapeError, match=r'layer "fc" gives \(2, 10\) for images of 32x32 px, which is no map of them\. Name a layer before'
    ):
        GradCAM(model, "fc")(x)
    with pytest.raises(ShapeError, match=r"no layer of Sequential gives a map with height and width\. Take variant=\"gradient\""):
        GradCAM(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))(images(2, 3, 4, 4))
    assert GradCAM(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), variant="gradient")(images(2, 3, 4, 4)).shape == (2, 4, 4)


def test_layers_off_the_way_to_the_score_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            with torch.no_grad():
                fixed = self.used(x)
            return fixed.mean((2, 3)) * torch.ones(1)

    with pytest.raises(ArgumentError, match=r'layer "unused" did not run in the forward pass\. Name one that does\.'):
        GradCAM(Net(), "unused")(images(1, 3, 8, 8))
    for layer in ("aside", "used"):
        with pytest.raises(ArgumentError, match=rf'the score does not depend on layer "{layer}", or is computed where gradients are off'):
            GradCAM(Net(), layer)(images(1, 3, 8, 8))
    with pytest.raises(ArgumentError, match=r"the score does not depend on the images, or"):
        GradCAM(Net(), variant="gradient")(images(1, 3, 8, 8))


def test_targets_out_of_range_and_of_another_number_are_refused() -> None:
    explain, x = GradCAM(tiny("bare")), images(3, 3, 16, 16)
    with pytest.raises(ArgumentError, match=r"`target` must lie in 0 to 9, as the network has 10 classes, got 10\."):
        explain(x, 10)
    with pytest.raises(ArgumentError, match=r"`target` must lie in 0 to 9, as the network has 10 classes, got \[0, -1, 2\]\."):
        explain(x, [0, -1, 2])
    with pytest.raises(ArgumentError, match=r"`target` must be one class, or one for each of 3 images, got shape \(2,\)\."):
        explain(x, [0, 1])
    with pytest.raises(ArgumentError, match=r"`target` must lie in 0 to 1, as the network has 2 classes, got 2\."):
        GradCAM(tiny("bare", num_classes=1))(x, 2)
    with pytest.raises(ShapeError, match=r"`target` must give one score for each image, shape \(N,\), got \(3, 10\)\."):
        explain(x, lambda logits: logits)
    with pytest.raises(ShapeError, match=r"must give one score for each image, shape \(N,\), got float\."):
        explain(x, lambda logits: 1.0)


def test_a_single_image_without_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"must be a batch \(N, C, H, W\), got \(3, 16, 16\)\. For a single one write images\[None\]\."):
        GradCAM(tiny("bare"))(images(3, 16, 16))


def test_a_gradient_that_is_no_number_is_refused() -> None:
    with pytest.raises(NonFiniteError, match=r'the gradient at layer "map" is not finite'):
        GradCAM(Head(lambda x: two_logits(x.sum((1, 2, 3)).sub(20).sqrt())), "map")(A)


@pytest.mark.parametrize(("last", "name"), [(nn.Sigmoid(), "sigmoid"), (nn.Softmax(1), "softmax")])
def test_probabilities_in_the_place_of_logits_are_warned_of(last: nn.Module, name: str) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(
        UserWarning, match=rf"ends in a {name}, so what it gives are probabilities, whose gradient vanishes .* ends in logits"
    ):
        GradCAM(nn.Sequential(body, last, nn.Unflatten(1, (1, 4)), nn.Flatten()))(images(2, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(nn.Sequential(body, last, nn.Linear(4, 2)))(images(2, 3, 8, 8))


def test_predictions_and_scores_of_one_logit() -> None:
    one = torch.tensor([[-1.0], [2.0]])
    assert predicted(one).tolist() == predicted(one[:, 0]).tolist() == [0, 1]
    assert score(one, None).tolist() == [1, 2]
    assert score(one, 1).tolist() == [-1, 2]
    assert predicted(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [1]
