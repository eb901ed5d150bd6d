"""A network as an ONNX model."""

import contextlib
import io
import logging
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, need

LARGEST = 2**31 - 1  # bytes of a protobuf message, which an ONNX file is
INPUT, OUTPUT = "images", "logits"


def onnx_model(net: nn.Module, images: Float[Tensor, "batch channels height width"]) -> Any:
    """Convert a network to an ONNX model (an `onnx.ModelProto`) whose batch is open, and height and width too where the network permits.

    Args:
        net: the network, in evaluation and on the CPU.
        images: two images or more that pass through it.

    Raises:
        ArgumentError: if torch cannot follow the network, or its weights do not fit into one file.
    """
    size = sum(value.nbytes for value in net.state_dict().values())
    if size > LARGEST:
        raise ArgumentError(
            f'export: one ONNX file holds at most {LARGEST / 2**30:.0f} GiB, the weights take {size / 2**30:.1f}. Use format="safetensors".'
        )
    need("onnx", "export")
    need("onnxscript", "export")
    batch, auto = torch.export.Dim("batch"), torch.export.Dim.AUTO
    program: Any = None
    trouble: Exception | None = None
    for shape in ({0: batch, 2: auto, 3: auto}, {0: batch}):
        try:
            with _quiet():
                program = torch.onnx.export(
                    net, (images,), dynamo=True, dynamic_shapes=(shape,), input_names=[INPUT], output_names=[OUTPUT], verbose=False
                )
            break
        except Exception as error:  # torch's exporter lets through whatever a network's own code raises
            trouble = trouble or error
    if program is None:
        said = " ".join(str(trouble.__cause__ or trouble).split())[:300] if trouble is not None else ""
        raise ArgumentError(f'export: torch cannot turn {type(net).__name__} into ONNX ({said}). Use format="torchscript".') from trouble
    return program.model_proto


def onnx_bytes(net: nn.Module, images: Float[Tensor, "batch channels height width"]) -> bytes:
    """Convert a network to the bytes of an ONNX file."""
    return onnx_model(net, images).SerializeToString()


def onnx_session(onnx: bytes | str, threads: int) -> Any:
    """Open an ONNX file, or its bytes, with ONNX Runtime on the CPU."""
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # errors are raised, too
    return runtime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence what the exporter tells its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
