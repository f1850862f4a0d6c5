"""The quantization of an ONNX graph to int8, by onnxruntime."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gkd_core.deploy.onnx_graph import GRAPH, undisturbed


def quantize_graph(directory: Path) -> None:
    """Replace the graph of a directory by one with int8 weights.

    Activations are quantized when the graph runs, so that no rows to calibrate on are needed.
    Each output of a matrix has a scale of its own (`per_channel`): one for a whole matrix moves
    the outputs much further.

    Args:
        directory: Where `model.onnx` is.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with undisturbed(), tempfile.TemporaryDirectory(dir=directory) as folder:
        graph = onnx.load(str(directory / GRAPH))
        # The quantizer transposes weights in place, and then finds their former shapes wrong.
        del graph.graph.value_info[:]
        source, made = Path(folder) / "source.onnx", Path(folder) / GRAPH
        onnx.save(graph, str(source), save_as_external_data=True, location="source.data")
        quantize_dynamic(
            source,
            made,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        for file in (*directory.glob(f"{GRAPH}*"),):
            file.unlink()
        for file in Path(folder).glob(f"{GRAPH}*"):
            os.replace(file, directory / file.name)
