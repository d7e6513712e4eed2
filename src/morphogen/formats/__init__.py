"""Files that a network leaves as, PyTorch source, safetensors, ONNX, and that questions about it come in, VNN-LIB."""

from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.source import source
from morphogen.formats.vnnlib import read_vnnlib

__all__ = ["export_onnx", "load_tensors", "read_onnx", "read_vnnlib", "save_tensors", "source"]
