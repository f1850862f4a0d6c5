"""The conversion of a model to an ONNX graph, by the exporter of transformers."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gkd_core.deploy.onnx_model import EXTRA
from gkd_core.errors import ConfigError, first_line
from gkd_core.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH = "model.onnx"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
EXAMPLE_TOKENS = 8
"""Tokens of the example that a decoder is traced with."""

AXES = {2: ("batch", "sequence"), 3: ("batch", "choices", "sequence")}
"""The names of the axes of an input, by their number."""


def write_graph(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    directory: Path,
    longest: int,
    opset: int | None,
) -> None:
    """Write a model as `model.onnx`, with its weights beside it in `model.onnx.data`.

    Batches may have any number of rows, and any length that the model reads.

    Args:
        model: The model, in eval mode on the CPU.
        inputs: An example of its inputs, int64.
        directory: Where to write.
        longest: Largest number of tokens in a row.
        opset: Version of the ONNX operators. Default: the newest that the exporter writes.

    Raises:
        ConfigError: The exporter is not installed, or cannot convert the architecture.
    """
    sample = {name: _two_of_each(value) for name, value in inputs.items()}
    model.config.use_cache = False
    _write(model, sample, _dynamic_shapes(sample, longest), directory, opset)


def write_decoder(model: PreTrainedModel, token: int, directory: Path, opset: int | None) -> None:
    """Write a language model that continues texts, as `write_graph` writes others.

    The graph reads the keys and values of earlier tokens and returns them with those of the new
    ones. The first pass, over the prompt, reads empty ones; each later pass reads a token.

    Args:
        model: The model, in eval mode on the CPU.
        token: An ordinary token.
        directory: Where to write.
        opset: Version of the ONNX operators. Default: the newest that the exporter writes.

    Raises:
        ConfigError: The exporter is not installed, or cannot convert the architecture.
    """
    _import_exporter()
    from transformers.exporters.utils import decompose_for_generation

    ids = torch.full((2, EXAMPLE_TOKENS), token)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # without padding, the mask would be left out of the graph
    model.config.use_cache = True
    with undisturbed():
        parts = decompose_for_generation(
            model, {"input_ids": ids, "attention_mask": mask}, multi_token_decode=True
        )
    stepped, sample = parts["decode"]
    _write(stepped, sample, _decoder_shapes(sample), directory, opset)


def _write(
    model: Any, sample: Mapping[str, Any], shapes: Any, directory: Path, opset: int | None
) -> None:
    """Convert and write a model."""
    exporter, config_class = _import_exporter()
    _check_opset(opset)
    config = config_class(
        dynamic_shapes=shapes,
        prefer_deferred_runtime_asserts_over_guards=True,
        opset_version=opset,
    )
    with undisturbed():
        try:
            exported = exporter().export(model, dict(sample), config)
        except ConfigError:
            raise
        except Exception as error:  # torch raises many types, with pages of context
            raise ConfigError(
                f"{model.config.model_type} cannot be converted to ONNX by "
                f"transformers {version('transformers')}: {first_line(error)}. "
                "Export it with --format hf"
            ) from error
        _remove_traces(exported.program)
        exported.save_pretrained(directory)


def _check_opset(opset: int | None) -> None:
    """Reject a version of the operators that is not out yet."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > newest:
        known = f"onnx {version('onnx')} knows those up to {newest}"
        raise ConfigError(f"--opset {opset} is no version of the ONNX operators: {known}")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make and run a graph; those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def opset_of(file: Path) -> int:
    """Return the version of the standard ONNX operators that a graph uses."""
    import onnx

    imports = onnx.load(str(file), load_external_data=False).opset_import
    return next(int(each.version) for each in imports if each.domain in ("", "ai.onnx"))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the messages of exporters from the terminal; errors are raised as always."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _import_exporter() -> tuple[Any, Any]:
    try:
        for needed in ("onnx", "onnxruntime", "onnxscript"):
            import_module(needed)
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise ConfigError(
            "--format onnx needs onnx, onnxruntime, onnxscript and transformers 5.23 or newer "
            f"({error}). {EXTRA}"
        ) from error
    return OnnxExporter, OnnxConfig


def _two_of_each(value: Tensor) -> Tensor:
    """Return an input with at least two rows (and choices): torch takes a size of 1 for fixed."""
    for axis in range(value.dim() - 1):
        if value.shape[axis] < 2:
            value = value.repeat_interleave(2, axis)
    return value[:2].contiguous()


def _dynamic_shapes(inputs: Mapping[str, Tensor], longest: int) -> dict[str, dict[int, Any]]:
    """Return the axes that may vary; a length beyond the positions of the model would not trace."""
    axes = {name: torch.export.Dim(name) for name in ("batch", "choices")}
    axes["sequence"] = torch.export.Dim("sequence", max=longest)
    return {
        name: {place: axes[axis] for place, axis in enumerate(AXES[value.dim()])}
        for name, value in inputs.items()
    }


def _decoder_shapes(sample: Mapping[str, Any]) -> Any:
    """Return the axes that may vary; those of keys and values are rows and positions."""
    from transformers.exporters.exporter_dynamo import get_auto_dynamic_shapes

    varying = {n: x for n, x in sample.items() if not isinstance(x, (bool, int, str, type(None)))}
    return _without_widths(get_auto_dynamic_shapes(varying))


def _without_widths(shapes: Any) -> Any:
    """Leave out the heads and the width of keys and values, which never vary."""
    if isinstance(shapes, (list, tuple)):
        return type(shapes)(map(_without_widths, shapes))
    if isinstance(shapes, dict) and all(isinstance(key, int) for key in shapes):
        return {0: shapes[0], 2: shapes[2]} if len(shapes) == 4 else shapes
    if isinstance(shapes, dict):
        return {name: _without_widths(inner) for name, inner in shapes.items()}
    return shapes


def _remove_traces(program: Any) -> None:
    """Remove the places in source files that made the nodes, which have paths of this machine."""
    for graph in program.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
    for function in program.functions.values():
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()
    program.metadata_props.clear()
