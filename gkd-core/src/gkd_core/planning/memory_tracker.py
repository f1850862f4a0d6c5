"""`MemoryTracker`: accounts for the memory of every tensor, by its purpose."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from gkd_core.planning.traffic import involved, sent_bytes

MemoryKind = Literal[
    "teacher weights",
    "student weights",
    "gradients",
    "optimizer",
    "activations",
    "captured features",
    "logits and loss",
    "communication",
    "host",
    "absent",
]
HOST: MemoryKind = "host"
"""Tensors offloaded to host memory."""

ABSENT: MemoryKind = "absent"
"""Tensors that only the simulation holds: in a real run they would not exist at this time."""


ON_DEVICE: tuple[MemoryKind, ...] = tuple(
    kind for kind in get_args(MemoryKind) if kind not in (HOST, ABSENT)
)
TRANSIT: MemoryKind = "communication"
"""Tensors gathered from other ranks or copied from host memory, and gradient buckets."""

FEW = 2**20
"""Tensors of at most this many elements are cheap enough to compute for real."""

Result = TypeVar("Result")
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy, ATEN.clone)
GATHERS = ("allgather_", "_allgather_base_")


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    shapes = (q.shape, _per_head(k, q), _per_head(v, q))
    flops: int = sdpa_flop_count(*shapes)  # type: ignore[no-untyped-call]
    return flops


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    shapes = (gradient.shape, q.shape, _per_head(k, q), _per_head(v, q))
    flops: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
    return flops


def _per_head(shared: Tensor, q: Tensor) -> torch.Size:
    """Return the shape of keys or values with a copy for each head of the queries.

    Heads may share them, which the formulas of PyTorch before 2.13 refuse.
    """
    return torch.Size((shared.shape[0], q.shape[1], *shared.shape[2:]))


def _product(_: Tensor, left: Tensor, right: Tensor) -> int:
    return 2 * left.numel() * right.shape[1]


FLOPS: Mapping[Any, Callable[..., int]] = {
    ATEN.addmm_: _product,
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN._scaled_dot_product_flash_attention: _attention,
    ATEN._scaled_dot_product_efficient_attention: _attention,
    ATEN._scaled_dot_product_cudnn_attention: _attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""FLOP formulas of operations that PyTorch does not count, or not in every version."""


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks how much memory is in use at any time, and for what.

    A storage is tracked from the moment an operation returns a tensor in it until nothing refers to
    it anymore. This works for real tensors and for fake ones, which take no memory. Workspace that
    a kernel allocates while it runs is not seen.

    Attributes:
        live: Bytes by kind.
        peak: Bytes by kind at the moment when their sum on the device was highest.
        flops: Floating-point operations of matrix products and attention.
        sent: Bytes that this rank sends, by collective operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Counter[MemoryKind] = Counter()
        self.peak: Counter[MemoryKind] = Counter()
        self.host_peak = 0
        self.flops = 0
        self.sent: Counter[str] = Counter()
        self._begun = False
        self._times = 1
        self._total = 0
        self._highest = 0
        self._kind: MemoryKind = "activations"
        self._booked: dict[int, _Entry] = {}

    @contextmanager
    def track(self, kind: MemoryKind) -> Iterator[None]:
        """Assign tensors created inside to a kind."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """Count arithmetic and communication inside as often as a real run performs them."""
        self._times = times
        try:
            yield
        finally:
            self._times = 1

    def during(self, kind: MemoryKind, work: Callable[..., Result]) -> Callable[..., Result]:
        """Return the function, wrapped so that tensors that it creates are assigned to a kind."""

        def booked(*args: Any, **kwargs: Any) -> Result:
            with self.track(kind):
                return work(*args, **kwargs)

        return booked

    def claim(self, tensors: Iterable[Tensor], kind: MemoryKind) -> None:
        """Reassign tensors to a kind, whatever their kind was."""
        for tensor in tensors:
            entry = self._book(tensor)
            if entry is not None and entry.kind != kind:
                self._change(entry.kind, -entry.size)
                entry.kind = kind
                self._change(kind, entry.size)

    def send(self, name: str, size: int, ranks: int) -> None:
        """Count a collective operation.

        Args:
            name: Its name in `torch.ops.c10d`.
            size: Bytes of its result.
            ranks: Ranks that take part.
        """
        if ranks > 1:
            self.sent[name] += self._times * sent_bytes(name, size, ranks)

    def begin(self) -> None:
        """Begin a step: its arithmetic and communication are counted from here.

        The peak is that of all steps, from the first one on.
        """
        self.flops = 0
        self.sent.clear()
        if not self._begun:
            self._begun, self._highest, self.host_peak = True, 0, 0
            self._note_peak()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and track what it returns."""
        if func is ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1  # `.item()`: a fake tensor has no value, so any number has to do
        run = func if types or not self._begun else _as_far_as_known(func)
        out = run(*args, **(kwargs or {}))
        with self.track(TRANSIT if self._leaves_host(func, args) else self._kind):
            for tensor in _tensors(out):
                self._book(tensor)
        self._count(func, args, kwargs or {}, out)
        return out

    def _leaves_host(self, func: Any, args: Any) -> bool:
        """Return whether an operation copies a tensor from host memory."""
        if not self._begun or func._overloadpacket not in COPIES:
            return False
        source = self._booked.get(id(args[0].untyped_storage()))
        return source is not None and source.kind == HOST

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet = func._overloadpacket
        if packet in FLOPS:
            self.flops += self._times * FLOPS[packet](*args)
        elif packet in flop_registry:
            self.flops += self._times * flop_registry[packet](*args, **kwargs, out_val=out)
        elif func.namespace == "c10d":
            if packet.__name__ in GATHERS:
                self.claim(_tensors(args[0]), TRANSIT)
            self.send(packet.__name__, *involved(args))

    def _book(self, tensor: Tensor) -> _Entry | None:
        if tensor.device.type == "meta":
            return None
        storage = tensor.untyped_storage()
        key = id(storage)
        entry = self._booked.get(key)
        if entry is None:
            entry = _Entry(self._kind, storage.nbytes())
            entry.reference = weakref.ref(storage, lambda _: self._let_go(key))
            self._booked[key] = entry
            self._change(entry.kind, entry.size)
        elif entry.size != storage.nbytes():
            self._change(entry.kind, storage.nbytes() - entry.size)
            entry.size = storage.nbytes()
        return entry

    def _let_go(self, key: int) -> None:
        entry = self._booked.pop(key)
        self._change(entry.kind, -entry.size)

    def _change(self, kind: MemoryKind, size: int) -> None:
        self.live[kind] += size
        if kind in ON_DEVICE:
            self._total += size
        if size > 0:
            self._note_peak()

    def _note_peak(self) -> None:
        self.host_peak = max(self.host_peak, self.live[HOST])
        if self._total > self._highest:
            self._highest = self._total
            self.peak = self.live.copy()


def _as_far_as_known(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation that computes real values where they derive from the batch.

    The batch is not fake: methods may look at its tokens and at whatever follows from them.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        given = _tensors((args, kwargs))
        made = given or _tensors(func(*args, **kwargs))
        # A floating-point tensor created without inputs is a weight or an accumulator, not data.
        if any(t.numel() > FEW or (not given and t.is_floating_point()) for t in made):
            return func(*args, **kwargs)
        with _disable_current_modes():
            return func(*args, **kwargs)

    return run


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Entry:
    """A tracked storage."""

    __slots__ = ("kind", "reference", "size")

    def __init__(self, kind: MemoryKind, size: int) -> None:
        self.kind = kind
        self.size = size
        self.reference: weakref.ref[Any] | None = None
