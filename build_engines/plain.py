"""decoder_plain.onnx: the decoder without the visual mass, over the same weights.

Where nobody asks for the mass it should cost nothing, and an attribute decides it: attention
that also writes its probabilities is slower. So a bundle has two small graphs on one data file.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from build_engines.functions import ROW_ATTENTION

WITHOUT_MASS = "CausalAttention"
_MASS_NODES = "visual_mass"
_NUM_RESULTS = 3  # y, present_key, present_value


def write_plain_decoder(decoder: Path, output: Path) -> None:
    """Write the graph of `decoder` with `CausalAttention` in place of `RowAttention`."""
    model = onnx.load(decoder, load_external_data=False)
    graph = model.graph
    _replace(graph.node, [n for n in graph.node if not n.name.startswith(_MASS_NODES)])
    for node in graph.node:
        if node.op_type == ROW_ATTENTION:
            node.op_type = WITHOUT_MASS
            _replace(node.input, [i for i in node.input if i != "visual_index"])
            _replace(node.output, list(node.output)[:_NUM_RESULTS])
    _replace(graph.input, [i for i in graph.input if i.name != "visual_index"])
    _replace(graph.output, [o for o in graph.output if o.name != "visual_mass"])
    used = {name for node in graph.node for name in node.input}
    _replace(graph.initializer, [t for t in graph.initializer if t.name in used])
    _replace(graph.value_info, [v for v in graph.value_info if not v.name.startswith("visual_")])
    for function in model.functions:
        if function.name == ROW_ATTENTION:
            _without_mass(function)
    onnx.save(model, output)


def _without_mass(function: onnx.FunctionProto) -> None:
    """Keep the attention node alone, and its first three results."""
    function.name = WITHOUT_MASS
    (attention,) = (n for n in function.node if n.op_type == "GroupQueryAttention")
    _replace(attention.output, list(attention.output)[:_NUM_RESULTS])
    _replace(attention.attribute, [a for a in attention.attribute if a.name != "qk_output"])
    _replace(function.node, [attention])
    _replace(function.input, [i for i in function.input if i != "visual_index"])
    _replace(function.output, list(attention.output))


def _replace(field, values) -> None:  # type: ignore[no-untyped-def]  # protobuf's repeated fields
    """Set a repeated field; the values are copied before it is cleared."""
    kept = [v if isinstance(v, str) else type(v).FromString(v.SerializeToString()) for v in values]
    del field[:]
    field.extend(kept)
