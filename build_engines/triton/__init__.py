"""A model repository of Triton Inference Server around a bundle."""
