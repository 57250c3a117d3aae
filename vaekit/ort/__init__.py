"""ONNX Runtime: its execution providers, and sessions whose placement is proved."""
