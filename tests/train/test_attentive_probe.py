"""The attentive probe: its one attention by hand, what it leaves alone, and that it reads what a mean cannot."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError
from retinue.models import tiny
from retinue.models.tiny import KINDS
from retinue.train.attentive_probe import AttentiveProbe, FrozenClassifier, LinearProbe, attentive_probe


def digits(**changes: Any) -> retinue.data.Data:
    return retinue.data.open("digits", **{"input_size": 32, "channels": 3, "train_images": 200, "test_images": 60, **changes})


def test_the_probe_by_hand() -> None:
    probe = AttentiveProbe(4, 3, 1).eval()
    tokens = images(2, 5, 4)
    for parameter in probe.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        q = probe.attn.q(probe.norm_q(probe.query[0])) + probe.attn.q_bias
        k, v = probe.attn.k(probe.norm_k(tokens)), probe.attn.v(probe.norm_v(tokens)) + probe.attn.v_bias
        shares = (q @ k.transpose(1, 2) / 2).softmax(-1)
        found = probe.attn.proj(shares @ v)[:, 0]  # no shortcut, no MLP
        torch.testing.assert_close(probe.pool(tokens), found, rtol=0, atol=1e-5)
        torch.testing.assert_close(probe(tokens), probe.fc(found / (1 + 1e-5) ** 0.5), rtol=0, atol=1e-5)


def test_counts_of_the_base_network() -> None:
    with torch.device("meta"):
        probe, linear = AttentiveProbe(768, 1000, 12), LinearProbe(768, 1000)
    attention = 4 * 768**2 + 3 * 768  # four matrices; biases of queries, values and output
    assert parameters(probe) == 768 + 6 * 768 + attention + 769 * 1000
    assert parameters(linear) == 769 * 1000
    assert (probe.bn.eps, linear.bn.eps, probe.bn.affine, linear.bn.affine) == (1e-5, 1e-6, False, False)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_tokens_does_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    probe, tokens = AttentiveProbe(8, 3, 2).eval(), torch.randn(2, 7, 8)
    torch.testing.assert_close(probe(tokens[:, torch.randperm(7)]), probe(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("probe", ["attentive", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_probe_of_any_backbone_learns(kind: Any, probe: Any) -> None:
    model = FrozenClassifier(tiny(kind), probe, 10, input_size=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    retinue.fit(model, retinue.train.Supervised(), digits(), max_steps=2, batch_size=16, lr=0.01, schedule="constant", progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone."), name
    assert not model.train().backbone.training


def test_what_the_probes_see() -> None:
    vit: Any = tiny("timm_vit").eval()
    x = images(2, 3, 32, 32)
    tokens = vit.forward_features(x)
    assert torch.equal(FrozenClassifier(vit, "attentive").forward_features(x), tokens)  # the class token among them
    assert torch.equal(FrozenClassifier(vit, "linear").forward_features(x), tokens[:, 0])
    cnn: Any = tiny("timm_cnn").eval()
    maps = cnn.forward_features(x)
    assert torch.equal(FrozenClassifier(cnn).forward_features(x), maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(FrozenClassifier(cnn, "linear").forward_features(x), maps.mean((2, 3)))
    assert FrozenClassifier(vit).head.attn.num_heads == 2
    assert FrozenClassifier(cnn).head.attn.num_heads == 1


def test_it_has_timms_protocol() -> None:
    for kind in ("attentive", "linear"):
        model = FrozenClassifier(tiny("timm_vit"), kind, 3).eval()  # type: ignore[arg-type]
        x = images(2, 3, 32, 32)
        entering = model.forward_head(model.forward_features(x), pre_logits=True)
        assert entering.shape == (2, model.num_features)
        torch.testing.assert_close(model.get_classifier()(entering), model(x))
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert torch.equal(model(x), entering)


class Marks(nn.Module):
    """Tokens of which one carries the class of a digit: what is averaged over all is lost among the others."""

    num_features, num_classes, in_chans, has_class_token, num_prefix_tokens = 16, 0, 3, True, 1

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        mark = (x.flatten(1).sum(1) > x.flatten(1).sum(1).median()).float()
        tokens = torch.randn(len(x), 9, 16, generator=torch.Generator().manual_seed(int(x.sum().abs())))
        tokens[:, 4] = 0
        tokens[:, 4, 0], tokens[:, 4, 1] = 30.0, 30 * mark
        return tokens

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x[:, 0]

    def reset_classifier(self, num_classes: int) -> None: ...

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


def test_the_query_finds_the_one_token_that_tells() -> None:
    """A linear probe of the class token, which is noise here, stays at chance."""
    x = images(64, 3, 4, 4)
    labels = (x.flatten(1).sum(1) > x.flatten(1).sum(1).median()).long()
    right = {}
    for kind in ("attentive", "linear"):
        torch.manual_seed(0)
        model = FrozenClassifier(Marks(), kind, 2, num_heads=2)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for step in range(80):
            loss = nn.functional.cross_entropy(model(x + 1e-3 * step), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right[kind] = float((model.eval()(x + 1).argmax(1) == labels).float().mean())
    assert right["attentive"] > 0.95
    assert right["linear"] < 0.8


def test_the_function_measures_and_leaves_the_network_as_it_was() -> None:
    model = tiny("timm_vit").train()
    model.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = attentive_probe(model, digits(), epochs=3, batch_size=32, lr=0.1, progress=False)
    assert set(numbers) == {"top1", "top5", "ece", "loss"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    again = attentive_probe(model, digits(), epochs=3, batch_size=32, lr=0.1, progress=False)
    assert again == numbers
    linear = attentive_probe(model, digits(), kind="linear", epochs=1, batch_size=32, optimizer="lars", lr=1.0, progress=False)
    assert linear["loss"] != numbers["loss"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'no kind is called "attention"\. Did you mean attentive'):
        FrozenClassifier(tiny("timm_vit"), "attention")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"a multiple of the number of heads, got 32 and 3"):
        FrozenClassifier(tiny("timm_vit"), num_heads=3)
    with pytest.raises(ArgumentError, match=r"has no test images\. Open the data with a larger test_fraction"):
        attentive_probe(tiny("timm_vit"), digits(test_images=None, test_fraction=0.0))
