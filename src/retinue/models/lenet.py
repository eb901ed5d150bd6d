"""LeNet as Caffe has it for MNIST, the target of Nguyen et al. 2015 (arXiv 1412.1897): 431,080 parameters, no ReLU behind convolutions."""

from torch import nn

from retinue.errors import ArgumentError
from retinue.models.factory import image_size, register
from retinue.models.network import Network


@register(cfg={"input_size": (1, 28, 28), "crop_pct": 1.0, "mean": (0.0,), "std": (1.0,), "first_conv": "stem.0", "classifier": "head.fc"})
def lenet(
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> Network:
    """Build LeNet: 5x5 convolutions to 20 and 50 channels, each with max-pooling by 2, then 500 units with ReLU and the classifier.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width, at least 16; None is 28.

    Raises:
        ArgumentError: if the images are too small for the two convolutions.
    """
    height, width = image_size(input_size) or (28, 28)
    if min(height, width) < 16:
        raise ArgumentError(f"lenet: images must be at least 16x16 px, got {height}x{width}. Open the data with a larger input_size.")
    left = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
    return Network(
        nn.Sequential(nn.Conv2d(in_chans, 20, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Sequential(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))),
        nn.Sequential(nn.Conv2d(50, 500, (left[0], left[1])), nn.ReLU()),
        taps=[
            {"num_chs": 20, "reduction": 2, "module": "stem.1"},
            {"num_chs": 50, "reduction": 4, "module": "stages.0"},
        ],
        num_features=500,
        num_classes=num_classes,
        in_chans=in_chans,
        min_side=min(height, width),
    )
