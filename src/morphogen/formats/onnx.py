"""Write a network as ONNX and check the file against the network."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from morphogen.errors import NotExact
from morphogen.record import Certificate, write_atomic


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> Certificate:
    """Write `model` to `path` with a free batch size, run the file in onnxruntime on `example`, and compare.

    Input "input", output "output". Raises `NotExact`, leaving no file, where the outputs differ by more than 1e-4 of the
    largest one.
    """
    model = model.eval()
    batch = torch.export.Dim("batch", min=1)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # the exporter reports its progress on standard output, and other people's deprecations on standard error
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
    data = _bare(program.model_proto).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(example).cpu().numpy()
    (seen,) = session.run(None, {"input": example.cpu().numpy()})
    error, scale = float(np.abs(expected - seen).max()), float(np.abs(expected).max())
    if not error <= 1e-4 * max(1.0, scale):
        raise NotExact(f"onnx: onnxruntime's output differs from torch's by {error:.2e}; no file was written to {path}")
    write_atomic(path, data)
    return Certificate("measured", error, None, False, f"onnxruntime against torch on {len(example)} examples")


def _bare(message: Any) -> Any:
    """An ONNX message without the notes in any part of it: the exporter's have the writer's source lines and paths."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                _bare(part)
    return message
