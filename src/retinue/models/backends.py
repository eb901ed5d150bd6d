"""What runs a network in inference form: torch itself, torch's compiler, ONNX Runtime or OpenVINO; each is a module with the same call."""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from retinue.errors import ArgumentError, ShapeError, need
from retinue.models.onednn import use_onednn
from retinue.models.onnx_form import onnx_bytes, onnx_session

COMPILED = 64  # shapes of images that torch compiles for, before it would give up and run uncompiled
Call = Callable[[Tensor], Any]


class TorchForm(nn.Module):
    """A network with the channels last in memory; on a CPU, its convolutions are single calls of oneDNN (`models.onednn`).

    Args:
        net: the network in inference form.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = _channels_last(net)
        for part in list(net.modules()):
            if isinstance(part, fx.GraphModule):
                use_onednn(part)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """Run the network."""
        return self.net(images.contiguous(memory_format=torch.channels_last))


class CompiledForm(nn.Module):
    """A network that something else runs: what `build` makes of it, at the first call and anew in every copy.

    The parameters are there to be counted and stored; what runs holds its own, as constants.

    Args:
        net: the network in inference form.
        build: turns it into a function of images.
        sides: height and width of images that are known to pass.
    """

    def __init__(self, net: nn.Module, build: Callable[[nn.Module], Call], sides: torch.Size) -> None:
        super().__init__()
        self.net, self.build, self.sides = net, build, sides
        self._call: Call | None = None

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """Run the network.

        Raises:
            ShapeError: if the network does not take images of this size.
        """
        if self._call is None:
            self._call = self.build(self.net)
        try:
            with torch.no_grad():
                return self._call(images)
        except Exception as error:  # each has errors of its own
            if images.shape[2:] == self.sides:
                raise
            sizes = [f"{height}x{width}" for height, width in (self.sides, images.shape[2:])]
            raise ShapeError(
                f"this network was tried with images of {sizes[0]} px and does not run with {sizes[1]}. Resize them, or optimize it with "
                "input_size=(height, width), where the network itself takes that size."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_call": None}  # sessions can be neither copied nor stored


def torch_form(net: nn.Module, images: Tensor, threads: int) -> nn.Module:
    """Run by torch."""
    return TorchForm(net)


def inductor_form(net: nn.Module, images: Tensor, threads: int) -> nn.Module:
    """Compile by torch, with the parameters as constants; once for each shape of images."""
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if not any(shutil.which(compiler) for compiler in compilers):
        raise ArgumentError('optimize: "inductor" needs a C++ compiler, and none was found. Install g++, or use backend="torch".')
    return CompiledForm(_channels_last(net), _inductor_call, images.shape[2:])


def onnxruntime_form(net: nn.Module, images: Float[Tensor, "batch channels height width"], threads: int) -> nn.Module:
    """Run by ONNX Runtime on the CPU."""
    need("onnxruntime", "export")
    return CompiledForm(net, partial(_onnxruntime_call, images=images, threads=threads), images.shape[2:])


def openvino_form(net: nn.Module, images: Float[Tensor, "batch channels height width"], threads: int) -> nn.Module:
    """Run by OpenVINO on the CPU, in float32."""
    need("openvino", "openvino")
    return CompiledForm(net, partial(_openvino_call, images=images, threads=threads), images.shape[2:])


BACKENDS = {"torch": torch_form, "inductor": inductor_form, "onnxruntime": onnxruntime_form, "openvino": openvino_form}


def _channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def _inductor_call(net: nn.Module) -> Call:
    compiled = torch.compile(net, dynamic=False)  # for a dynamic shape it would lay out the weights at each call

    def call(images: Tensor) -> Any:
        # both settings count while a shape is compiled, which may be now; as options of torch.compile they come too late
        freeze = torch._inductor.config.patch(freezing=True)
        with freeze, torch._dynamo.config.patch(recompile_limit=COMPILED):
            return compiled(images.contiguous(memory_format=torch.channels_last))

    return call


def _onnxruntime_call(net: nn.Module, images: Tensor, threads: int) -> Call:
    session = onnx_session(onnx_bytes(net.cpu(), images), threads)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: _numbers(images)})[0]).to(images.device)


def _openvino_call(net: nn.Module, images: Tensor, threads: int) -> Call:
    openvino = need("openvino", "openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer, about sizes that become constants; the outputs are compared afterwards
        model = openvino.convert_model(net.cpu(), example_input=images)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    # the next call writes into the same memory, hence the copy
    return lambda images: torch.from_numpy(compiled([_numbers(images)])[0].copy()).to(images.device)


def _numbers(images: Tensor) -> Any:
    return images.detach().cpu().contiguous().numpy()
