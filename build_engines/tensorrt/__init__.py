"""Checkpoint -> TensorRT engines, for `tensorrt` and `tensorrt_rtx` alike; needs no GPU with the
latter.
"""
