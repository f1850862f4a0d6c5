"""`Candidate`: a saved model, in PyTorch or ONNX, whose speed and size are measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError

from gkd_core.contract.positions import longest_sequence
from gkd_core.deploy.onnx_graph import GRAPH
from gkd_core.deploy.onnx_model import OnnxDecoder, OnnxModel
from gkd_core.errors import ConfigError, first_line
from gkd_core.models.load import check_safetensors
from gkd_core.models.quiet import quiet
from gkd_core.models.save import directory_size
from gkd_core.models.source import load_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedModel

WEIGHTS = (".safetensors", ".onnx", ".data")
CHOICES = "ForMultipleChoice"
MEBI = 2**20


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Attributes:
        name: The directory as it was typed.
        place: The directory.
        model: The model, in eval mode on the CPU.
        vocabulary: Number of tokens.
        longest: Largest number of tokens that it reads.
        classes: Name of its class in transformers.
    """

    name: str
    place: Path
    model: nn.Module
    vocabulary: int
    longest: int
    classes: str

    @classmethod
    def load(cls, name: str, threads: int) -> Candidate:
        """Load a Hugging Face directory, or a graph that `gkd export` has written.

        Args:
            name: The directory.
            threads: Number of threads of a graph.

        Raises:
            ConfigError: It holds no such model.
        """
        place = Path(name)
        config = load_config(name, False, "DIR")
        named: list[str] = list(config.architectures or ())
        architecture, longest = named[0] if named else "", longest_sequence(config)
        if (place / GRAPH).is_file():
            manifest = (place / "export.json").read_text()
            made = OnnxDecoder if "past_key_values" in manifest else OnnxModel
            graph = made(place / GRAPH, threads)
            return cls(name, place, graph, config.vocab_size, longest, architecture)
        model = _load(name, architecture)
        return cls(name, place, model, config.vocab_size, longest, architecture)

    @property
    def size(self) -> int:
        """Bytes of the weights, or of the whole directory if it has none of a known form."""
        files = [path for path in self.place.iterdir() if path.suffix in WEIGHTS]
        return sum(path.stat().st_size for path in files) or directory_size(self.place)

    def inputs(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return a batch of random tokens, the same for all candidates of equal vocabulary.

        Args:
            rows: Number of rows.
            length: Tokens of each.
        """
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary, (rows, length), generator=draw)
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "token_type_ids" in getattr(self.model, "input_names", ()):
            made["token_type_ids"] = torch.zeros_like(ids)
        if self.classes.endswith(CHOICES):
            made = {name: value.unsqueeze(1) for name, value in made.items()}
        return made

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run a forward pass."""
        with torch.no_grad():
            return self.model(**inputs)


def _load(name: str, architecture: str) -> PreTrainedModel:
    """Load a Hugging Face directory, of which only safetensors are read."""
    kind: Any = getattr(transformers, architecture, None)
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model:
        raise ConfigError(f"{name} does not say which class of transformers it is")
    check_safetensors(name, architecture, "DIR")
    try:
        with quiet():
            model: PreTrainedModel = kind.from_pretrained(name).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"DIR = {name!r} cannot be loaded: {first_line(error)}") from error
    return model


def peak_memory(name: str, threads: int, rows: int, length: int) -> float | None:
    """Return the MiB that a model and a batch take at most, measured in a process of its own.

    Args:
        name: The directory of the model.
        threads: Number of threads.
        rows: Number of rows.
        length: Tokens of each.

    Returns:
        What the process takes beyond the libraries; None if it cannot be measured.
    """
    arguments = [name, *map(str, (threads, rows, length))]
    command = [sys.executable, "-m", "gkd_core.deploy.candidate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: float = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found


def _measure_memory(name: str, threads: str, rows: str, length: str) -> None:
    """Print the memory that a model takes beyond what the process took before."""
    torch.set_num_threads(int(threads))
    before = _peak()
    candidate = Candidate.load(name, int(threads))
    candidate.run(candidate.inputs(int(rows), int(length)))
    print(json.dumps((_peak() - before) / MEBI))


def _peak() -> float:
    """Return the most bytes that this process has taken so far.

    What `getrusage` says begins with what the process took that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * float(lines["VmHWM"].split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


if __name__ == "__main__":
    _measure_memory(*sys.argv[1:])
