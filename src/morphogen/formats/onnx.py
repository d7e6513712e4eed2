"""Write a network as ONNX and check the file against the network."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from morphogen.certify import certify, difference
from morphogen.record import Certificate, write_atomic

# of the spread
WITHIN = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-9}


def export_onnx(
    model: nn.Module, example: Tensor, path: Path, about: Mapping[str, str] | None = None
) -> Certificate:
    """Write `model` to `path` with a free batch size, run the file in onnxruntime on `example`, and
    compare.

    Input "input", output "output". about: what the file says of itself (its `metadata_props`).
    Raises `NotExact`, leaving no file, where the outputs differ by more than rounding and `WITHIN`
    of their spread.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        return _exported(model.eval(), example, path, about or {})
    finally:
        for module, mode in modes.items():
            module.training = mode


def _exported(
    model: nn.Module, example: Tensor, path: Path, about: Mapping[str, str]
) -> Certificate:
    batch = torch.export.Dim("batch", min=1)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # the exporter reports its progress on standard output, and other people's deprecations on
        # standard error
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    written = _bare(program.model_proto)
    for key, value in about.items():
        written.metadata_props.add(key=key, value=value)
    data = written.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(example).cpu()

    def replay(x: Tensor) -> Tensor:
        (outputs,) = session.run(None, {"input": x.cpu().numpy()})
        return torch.from_numpy(outputs)

    certificate = certify(
        "onnx",
        lambda _: expected,
        replay,
        example,
        kind="measured",
        reason=f"onnxruntime against torch on {len(example)} examples",
        allowed=_allowed(model, example, expected),
        hint=f"no file was written to {path}",
    )
    write_atomic(path, data)
    return certificate


@torch.no_grad()
def _allowed(model: nn.Module, example: Tensor, expected: Tensor) -> float:
    """The largest difference that is no fault: what the model itself is off, in its precision, and
    a little of the outputs' spread. Not of their size: far from 0 it would allow anything.
    """
    exact = copy.deepcopy(model).double()(example.double()).cpu()
    unit = WITHIN[expected.dtype] / 100
    rounding = 16 * difference(expected, exact) + unit * float(expected.abs().max())
    return WITHIN[example.dtype] * float(expected.max() - expected.min()) + rounding


def _bare(message: Any) -> Any:
    """An ONNX message without the notes in any part of it: the exporter's have the writer's source
    lines and paths.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                _bare(part)
    return message
