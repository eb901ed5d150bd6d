"""AlexNet with batch norm, as self-supervision is measured on it (Krizhevsky et al. 2012; this form: Gidaris et al. 2018, section 3.2)."""

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import image_size, register
from retinue.models.network import Network
from retinue.models.network_in_network import init_fan_out

PLAN = ((192, 5), (384, 3), (256, 3), (256, 3))  # channels and kernel of the convolutions behind the first


class AlexNet(Network):
    """Five convolutions and three linear layers, with batch norm after each but the last; no dropout, no groups.

    What enters the classifier is the second hidden layer.

    Args:
        stem: the first convolution.
        stages: the others, with their poolings.
        hidden: units of the hidden layers.
        map_size: height and width of the last map.
        options: those of `Network`.
    """

    def __init__(self, stem: nn.Sequential, stages: nn.Sequential, hidden: int, map_size: tuple[int, int], **options: object) -> None:
        num_classes = int(options.pop("num_classes"))  # type: ignore[call-overload]
        super().__init__(stem, stages, num_classes=num_classes, **options)  # type: ignore[arg-type]
        inputs = self.num_features * map_size[0] * map_size[1]
        self.map_size, self.head_hidden_size = map_size, hidden
        layers: list[nn.Module] = [nn.Flatten()]
        for wide in (inputs, hidden):
            layers += [nn.Linear(wide, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out. There is nothing to pool."""
        like = next(self.hidden.parameters())
        fresh = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head, self.num_classes = fresh.to(like.device, like.dtype), num_classes  # type: ignore[assignment]

    def forward_head(self, x: Float[Tensor, "batch features mapheight mapwidth"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the hidden layers and the logits; maps of another size are averaged to the size for which the network was built."""
        x = self.hidden(x if x.shape[2:] == self.map_size else nn.functional.adaptive_avg_pool2d(x, self.map_size))
        return x if pre_logits else self.head(x)


def _layer(conv: nn.Conv2d) -> list[nn.Module]:
    """Return a convolution (which keeps its bias, as in the official code), batch norm and ReLU."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


@register(cfg={"first_conv": "stem.0", "classifier": "head", "pool_size": (6, 6)})
def alexnet(
    num_classes: int = 1000,
    in_chans: int = 3,
    *,
    input_size: int | tuple[int, int] | None = None,
    hidden: int = 4096,
) -> AlexNet:
    """Build AlexNet with batch norm.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side, or height and width, of the images; None is 224. Images below 64 px meet a first convolution of 5x5 and stride 1.
        hidden: units of each of the two hidden layers.

    Raises:
        ArgumentError: if the images are smaller than 16 px.

    >>> sum(p.numel() for p in alexnet(num_classes=4).parameters())
    57030724
    """
    sides = image_size(input_size) or (224, 224)
    if min(sides) < 16:
        raise ArgumentError(f"alexnet: images must have sides of at least 16 px, got {sides[0]}x{sides[1]}. Enlarge them.")
    small = min(sides) < 64
    first = nn.Conv2d(in_chans, 64, 5, padding=2) if small else nn.Conv2d(in_chans, 64, 11, stride=4, padding=2)
    step = 1 if small else 4
    stages: list[nn.Module] = []
    taps = [{"num_chs": 64, "reduction": step, "module": "stem.2"}]
    maps = [side if small else (side + 4 - 11) // 4 + 1 for side in sides]
    channels, before = 64, True
    for width, kernel in PLAN:
        pool = [nn.MaxPool2d(3, 2)] if before else []
        stages.append(nn.Sequential(*pool, *_layer(nn.Conv2d(channels, width, kernel, padding=kernel // 2))))
        step *= 2 if before else 1
        maps = [(side - 3) // 2 + 1 for side in maps] if before else maps
        taps.append({"num_chs": width, "reduction": step, "module": f"stages.{len(stages) - 1}"})
        channels, before = width, not stages[1:]  # a pooling stands before the second and the third convolution
    stages.append(nn.MaxPool2d(3, 2))
    taps.append({"num_chs": channels, "reduction": 2 * step, "module": f"stages.{len(stages) - 1}"})
    maps = [(side - 3) // 2 + 1 for side in maps]
    network = AlexNet(
        nn.Sequential(*_layer(first)),
        nn.Sequential(*stages),
        hidden,
        (maps[0], maps[1]),
        taps=taps,
        num_features=channels,
        num_classes=num_classes,
        in_chans=in_chans,
        min_side=min(16, *sides),
    )
    init_fan_out(network.stem)
    init_fan_out(network.stages)
    init_fan_out(network.hidden)
    network.adaptation = ["stem: 11x11 stride 4 -> 5x5 stride 1"] if small else []
    return network
