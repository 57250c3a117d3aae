"""ONNX Runtime's execution providers, and sessions with proof of where their nodes run."""
