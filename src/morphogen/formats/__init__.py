"""Files that a network leaves as, PyTorch source, safetensors, ONNX, and that questions about it
come in, VNN-LIB.
"""
