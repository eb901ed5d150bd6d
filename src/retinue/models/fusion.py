"""The inference form of a network: a traced copy in which `rewrites` leave fewer layers that compute the same."""

import collections
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jaxtyping
from jaxtyping import Float
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from retinue.models import rewrites
from retinue.models.probe import check_equal, inference_copy, outputs

Rewrites = Mapping[str, Callable[[fx.GraphModule], int]]
REWRITES: Rewrites = {  # what each has done, in words; in the order in which they are applied
    "batch norms folded into the layers before them": rewrites.fold_norms,
    "constant scales folded": rewrites.fold_scales,
    "average pools put behind their 1x1 convolution": rewrites.pool_later,
    "sibling 1x1 convolutions merged": rewrites.merge_siblings,
}


def fuse(model: nn.Module, *, merge: bool = True) -> tuple[nn.Module, list[str]]:
    """Return a copy of a network in inference form, and what was done to it, in words.

    A part whose Python code torch.fx cannot follow (it looks at values or shapes) stays as it is, and its children are rewritten one by
    one. The result belongs to evaluation: dropout is gone, and nothing of it is trained.

    Args:
        model: any network; it is not changed.
        merge: join sibling 1x1 convolutions: fewer and wider calls, paid with a copy of each part that is read further on.

    >>> bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> fuse(bare)[1]
    ['batch norms folded into the layers before them: 1']
    """
    work = _Work({done: rewrite for done, rewrite in REWRITES.items() if merge or rewrite is not rewrites.merge_siblings})
    inner = _traced(model, work)
    notes = [f"{done}: {work.counts[done]}" for done in work.rewrites if work.counts[done]]
    if work.opaque:
        notes.append(f"torch.fx cannot trace {', '.join(work.opaque)}: folded child by child")
    return inner, notes


def scriptable(model: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation that `torch.jit.script` can read: layers one after the other, without shapes in signatures.

    Args:
        model: any network that torch.fx can trace; it is not changed.

    >>> torch.jit.script(scriptable(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))).code.count("relu")
    1
    """
    return _traced(model, _Work({}))


def _traced(model: nn.Module, work: "_Work") -> nn.Module:
    inner = inference_copy(model)
    for part in inner.modules():
        if hasattr(part, "check_size"):  # a size is checked by value, which a traced image has not
            part.__dict__["check_size"] = lambda images: None
    unchecked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # to a check of shapes, an image that is traced is no tensor
    try:
        return _fuse(inner, "", work)
    finally:
        jaxtyping.config.update("jaxtyping_disable", unchecked)


def fuse_checked(
    reference: nn.Module, images: Float[Tensor, "batch channels height width"], expected: list[Tensor], *, merge: bool
) -> tuple[nn.Module, list[str]]:
    """Return a network in inference form, or a plain copy where the form turns out to compute something else, and what was done.

    Args:
        reference: the network, in evaluation.
        images: trial images.
        expected: the network's outputs for them.
        merge: merge sibling 1x1 convolutions.
    """
    try:
        net, notes = fuse(reference, merge=merge)
        check_equal(expected, outputs(net, images), "the folded network", "")
    except Exception as error:  # any: a network's own code may look at parts of itself that folding has changed
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return inference_copy(reference), [f"nothing is folded: the folded network does not run as the network does ({reason})"]
    return net, notes


@dataclass
class _Work:
    rewrites: Rewrites
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    opaque: list[str] = field(default_factory=list)  # parts that cannot be traced


class _Tracer(fx.Tracer):
    """Follows the code of every module but convolutions, batch norms, what timm marks as not to be traced, and those in `opaque`.

    Args:
        opaque: names of modules whose code is not followed.
        whole: it is the whole network that is traced: it takes images, and its other arguments keep their defaults.
    """

    def __init__(self, opaque: set[str], whole: bool) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.opaque, self.whole, self.culprit = opaque, whole, ""
        self.leaves = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.opaque or isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or self.path_of_module(m)  # the innermost is the first to see it
            raise

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        if self.whole and len(parameters) > 1 and all(p.default is not p.empty for p in parameters[1:]):
            return super().create_args_for_root(lambda module, images: root_fn(module, images), is_module)
        return super().create_args_for_root(root_fn, is_module, concrete_args)


def _fuse(module: nn.Module, path: str, work: _Work) -> nn.Module:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return _fuse_children(module, path, work)
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential):
        return module
    opaque: set[str] = set()
    while True:
        tracer = _Tracer(opaque, whole=not path)
        try:
            graph = tracer.trace(module)
            break
        except Exception:  # whatever the network's own code raises at a value that is none
            if not tracer.culprit or tracer.culprit in opaque:
                work.opaque.append(f"{path or 'the network'} ({type(module).__name__})")
                return _fuse_children(module, path, work)
            opaque.add(tracer.culprit)
    graph._tracer_cls = fx.Tracer  # unpickling makes one without arguments
    for node in graph.nodes:
        node.type = None  # nor can it read the shapes in annotations
    net = fx.GraphModule(module, graph, type(module).__name__)
    for name in sorted(opaque):
        net.set_submodule(name, _fuse(net.get_submodule(name), f"{path}.{name}".lstrip("."), work))
    rewrites.drop_identities(net)
    for done, rewrite in work.rewrites.items():
        work.counts[done] += rewrite(net)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net.eval()


def _fuse_children(module: nn.Module, path: str, work: _Work) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _fuse(child, f"{path}.{name}".lstrip("."), work))
    return module
