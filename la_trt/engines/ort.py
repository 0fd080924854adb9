"""ONNX Runtime, which from here on sends nothing home.

Its builds of late write a device id and events below the user's cache and upload them. It looks at
the variable when it is loaded; who wants its telemetry sets ORT_DISABLE_TELEMETRY=0.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
