"""Graph passes: each changes an ONNX graph in one way."""
