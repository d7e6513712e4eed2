"""Files that a network leaves as: PyTorch source, safetensors, ONNX."""

from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.formats.onnx import export_onnx
from morphogen.formats.source import source

__all__ = ["export_onnx", "load_tensors", "save_tensors", "source"]
