"""Twelve small networks of different kinds, on which every system that changes a network's size is tried."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.vgg import VGG
from torch import nn

import retinue

SIDE, CLASSES = 32, 10


class Bare(nn.Module):
    """Anyone's network: no protocol, a residual sum, a functional call and an unused branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.mix(x))
        return self.fc(x.mean((2, 3)))


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: retinue.create_model(f"timm:{name}", num_classes=CLASSES, input_size=SIDE, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: retinue.create_model("small_convnet", widths=[8, 8, 16], num_classes=CLASSES, input_size=SIDE),
    "resnet": of_timm("resnet10t", channels=(8, 8, 16, 16)),
    "regnet": lambda: retinue.models.adapt(
        RegNet(RegNetCfg(depth=4, w0=8, wa=12.0, wm=1.5, group_size=8), num_classes=CLASSES), input_size=SIDE
    ),
    "mobilenetv3": of_timm("mobilenetv3_small_050"),
    "efficientnet": of_timm("test_efficientnet"),
    "convnext": of_timm("test_convnext"),
    "vgg": lambda: retinue.models.adapt(VGG([4, "M", 8, "M", 8, "M", 8, "M"], CLASSES, mlp_ratio=0.01), input_size=SIDE),
    "densenet": of_timm("densenet121", growth_rate=4, block_config=(1, 2, 1)),
    "vit": of_timm("test_vit"),
    "swin": of_timm("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 2)),
    "mixer": lambda: retinue.models.adapt(MlpMixer(CLASSES, SIDE, patch_size=8, num_blocks=2, embed_dim=16), input_size=SIDE),
    "bare": Bare,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """Build one of them, with weights of a seed."""
    torch.manual_seed(seed)
    return NETWORKS[name]()


_HIERARCHY = "so it cannot be cut between blocks. Take a timm ViT or DeiT, a CAE encoder or an MLP-Mixer"
_TOKENS = "works on tokens, and layers are removed and shrunk in convolutional networks only"
_NONE = "has no two successive residual blocks of the same shape"
_EVERY = dict.fromkeys(NETWORKS, "")
# which of them each system takes (""), and what it says of the others; docs/sizes.md prints it, the tests of each system try it
FITS: dict[str, dict[str, str]] = {
    "hypernetworks": _EVERY,
    "lottery-ticket": _EVERY,
    "n2n": {
        **_EVERY,
        "vit": f"pos_drop (Dropout) {_TOKENS}",
        "swin": f"layers.0.blocks.0.attn.qkv (Linear) {_TOKENS}",
        "mixer": f"blocks.0.norm1 (LayerNorm) {_TOKENS}",
    },
    "mixture-growth": {
        **_EVERY,
        "regnet": "the 3 groups of `s3.b1.conv2.conv` cannot be divided into 2 equal parts",
        "densenet": "the 7 outputs of `features.transition2.conv` cannot be divided into 2 equal parts",
        "vit": "what enters `blocks.0.norm1` (LayerNorm) mixes channels of several parts, or tokens",
        "swin": "what enters `layers.0.blocks.0.attn.proj` (Linear) mixes channels",
        "mixer": "what enters `blocks.0.mlp_tokens.fc1` (Linear) mixes channels",
    },
    "learngene-pool": {
        "ours": f"(Network) has no `blocks` and no `norm`, {_HIERARCHY}",
        "resnet": f"(ResNet) has no `blocks` and no `norm`, {_HIERARCHY}",
        "regnet": f"(RegNet) has no `blocks` and no `norm`, {_HIERARCHY}",
        "mobilenetv3": f"(MobileNetV3) has no `norm`, {_HIERARCHY}",
        "efficientnet": f"(EfficientNet) has no `norm`, {_HIERARCHY}",
        "convnext": f"(ConvNeXt) has no `blocks` and no `norm`, {_HIERARCHY}",
        "vgg": f"(VGG) has no `blocks` and no `norm`, {_HIERARCHY}",
        "densenet": f"(DenseNet) has no `blocks` and no `norm`, {_HIERARCHY}",
        "vit": "",
        "swin": f"(SwinTransformer) has no `blocks`, {_HIERARCHY}",
        "mixer": "",
        "bare": "(Bare) has no `blocks` and no `forward_features` and no `forward_head` and no `reset_classifier`, so it cannot be cut",
    },
    "sws": {**dict.fromkeys(NETWORKS, _NONE), "mobilenetv3": "", "convnext": "", "vit": "", "mixer": ""},
}
