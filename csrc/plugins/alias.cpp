// TensorRT-RTX's ONNX parser opens `libtensorrt_rtx.so`, and its Python wheel ships only
// `libtensorrt_rtx.so.1`. This library has the first name and needs the second; nothing is in it.
