"""Which layer of a network holds its last map."""

from support import images
from torch import nn

from retinue.explain.layers import last_map
from retinue.models.tiny import tiny


def test_the_last_map_of_a_network_that_ignores_its_maps_is_the_last() -> None:
    model = tiny("timm_cnn")
    nn.init.zeros_(model.get_submodule("fc").weight)  # type: ignore[arg-type]
    assert last_map(model, images(1, 3, 32, 32)) == "layer4"
