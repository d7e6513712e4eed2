"""An ONNX file as it is: `load(path) -> ModelProto` with all of its data, `runner(model)` what
onnxruntime makes of an input.

Nothing is interpreted here. Data that the file keeps in other files is looked up beside the file,
never in the working folder.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.inliner

from morphogen.errors import DataError
from morphogen.formats.compressed import read_bytes

Run = Callable[[np.ndarray], np.ndarray]


def load(path: Path) -> "onnx.ModelProto":
    """The model in a file, perhaps compressed (.gz), with the tensors that it keeps in files beside
    it and its own functions in the places where they are called.

    Raises `DataError` for a file that is no ONNX, and where tensors are missing or lie outside the
    file's folder.
    """
    try:
        model = onnx.load_from_string(read_bytes(path))
    except Exception as error:  # protobuf raises kinds of its own
        raise DataError(f"{path}: cannot be read as ONNX ({first_line(error)})") from error
    try:
        # the folder as a whole path: a relative one of "" would be the working folder
        onnx.external_data_helper.load_external_data_for_model(model, str(path.resolve().parent))
    except Exception as error:  # files that are absent, too short, elsewhere or links
        raise DataError(
            f"{path}: the tensors that it keeps in other files cannot be read "
            f"({first_line(error)}); keep those files beside it"
        ) from error
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.HasField("dim_value") and dim.dim_value == 0:
                # some exporters write a free size so, which onnxruntime takes for none
                dim.dim_param = "batch"
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise DataError(
            f"{path}: its functions cannot be put where they are called ({first_line(error)})"
        ) from error


# what onnxruntime says of files that are right but ahead of it
_NOT_YET = (
    "NOT_IMPLEMENTED",
    "Unsupported model IR version",
    "is under development and support for this is limited",
)


def runner(model: "onnx.ModelProto") -> Run:
    """What onnxruntime makes of an input, in the file's own precision and shape, on one thread.
    Where it has no code for an operator in that precision, or does not know so new a file, the
    evaluator of the standard itself.

    Raises `DataError` where the file is refused.
    """
    onnxruntime: Any = import_module("onnxruntime")  # slow to load, and needed for files alone
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised, and said once
    try:
        data = model.SerializeToString()
        run = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
    except Exception as error:  # onnxruntime and protobuf raise kinds of their own
        if not any(reason in str(error) for reason in _NOT_YET):
            raise DataError(f"onnxruntime does not run this file ({first_line(error)})") from error
        run = import_module("onnx.reference").ReferenceEvaluator(model).run
    stored = {tensor.name for tensor in model.graph.initializer}
    (given,) = [value.name for value in model.graph.input if value.name not in stored]

    def answer(x: np.ndarray) -> np.ndarray:
        try:
            (y, *_) = run(None, {given: x})
        except Exception as error:
            raise DataError(
                f"onnxruntime does not run it on an input {x.shape} ({first_line(error)})"
            ) from error
        return np.asarray(y)

    return answer


def first_line(error: Exception) -> str:
    """What an error says, shortly."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
