"""What the first two steps of a run take in memory, measured in processes of its own.

Peak is what tensors hold before the steps, and what PyTorch's profiler sees allocated in them.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from transformers import PreTrainedTokenizerFast


def measured(arguments: list[str], ranks: int) -> dict[str, float]:
    """Return what the steps of a run take in the process that takes most.

    Args:
        arguments: Of `gkd run`.
        ranks: Processes.

    Returns:
        `peak`, the most bytes that tensors have, and `resident`, the peak resident memory in MiB.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"LOCAL_WORLD_SIZE": ranks, "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(ranks):
        place = {**common, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
        place = {name: str(value) for name, value in place.items()}
        command = [sys.executable, __file__, "run", "--no-baseline", *arguments]
        started.append(
            subprocess.Popen(
                command, env=os.environ | place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    outputs = [process.communicate() for process in started]
    lines = [line for out, _ in outputs for line in out.decode().splitlines()]
    found = [json.loads(line) for line in lines if line.startswith('{"peak"')]
    if len(found) < ranks:
        raise SystemExit(max((said.decode() for _, said in outputs), key=len))
    return {key: max(each[key] for each in found) for key in found[0]}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words `word` and `other`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "word", "other"))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def measure(arguments: list[str]) -> None:
    """Run `gkd` in this process; print what the first two steps took, and end."""
    from torch.profiler import ProfilerActivity, profile

    from gkd_core.cli import main as gkd
    from gkd_core.training import loop

    stock = loop.train_step
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    held = 0

    def train_step(stage, batches, step):
        nonlocal held
        if step.index == 0:
            held = _held()
            profiler.start()
        result = stock(stage, batches, step)
        if step.index == 1:
            profiler.stop()
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"peak": held + _growth(profiler), "resident": resident}), flush=True)
            os._exit(0)
        return result

    loop.train_step = train_step
    gkd(arguments)


def _held() -> int:
    """Return the bytes of all tensors there are."""
    return sum(_storages().values())


def _storages() -> dict[int, int]:
    """Return the bytes at each address where a tensor is."""
    import torch

    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _growth(profiler) -> int:
    """Return by how much allocated memory grew at most.

    A thread of gloo may hold the last reference to a gathered tensor, and the profiler does not see
    it freed there. What is gone without having been freed was needed for a moment: it is left out.
    """
    live = most = 0
    for _, size in _allocations(profiler, _storages()):
        live += size
        most = max(most, live)
    return most


def _allocations(profiler, there: Container[int]) -> list[tuple[int, int]]:
    """Return when how much was taken, or given back if negative, in order of time.

    Args:
        profiler: It has stopped.
        there: Addresses of what is there now.
    """
    from torch._C._profiler import _EventType

    found, unfreed, events = {}, {}, []
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append(event)
    events.sort(key=lambda event: event.start_time_ns)
    for number, event in enumerate(events):
        memory = event.extra_fields
        found[number] = event.start_time_ns, memory.alloc_size
        unseen = unfreed.pop(memory.ptr, None)
        if memory.alloc_size > 0:
            unfreed[memory.ptr] = number
            if unseen is not None:
                del found[unseen]
    for address, number in unfreed.items():
        if address not in there:
            del found[number]
    return list(found.values())


if __name__ == "__main__":
    measure(sys.argv[1:])
