"""A device of PyTorch that stands in for a GPU. NumPy cannot read the values of its tensors.

As on a GPU, an operator on tensors of two devices raises an error, except for single numbers. `waits` names
the operators for which the host would wait for a GPU: reads of values, indexing by a mask, copies to the CPU,
and copies to the device that are not from pinned memory or not `non_blocking`.

Importing this module registers the device for the rest of the process. Import it before PyTorch computes the
first gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

DEVICE = "pretend"
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to"}
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {aten.index.Tensor, aten.index_put_.default}  # with a mask, these wait

waits: list[str] = []


class PretendTensor(Tensor):
    """A tensor on the device; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor: Any = Tensor._make_wrapper_subclass(cls, held.shape, device=f"{DEVICE}:0", **layout)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(operator, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch refuses `tolist` for subclasses


@torch.inference_mode(False)  # so that tensors made during inference can be used after it
def apply(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operator to the held values, and wrap the results as tensors of this device."""
    leaves, name = tree_leaves((args, kwargs)), operator.name().partition(".")[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
    to_cpu = torch.device("cpu") in leaves or (
        operator is aten.copy_.default and not isinstance(args[0], PretendTensor)
    )
    if name in COPIES:
        from_pinned = args[2:] == (True,) and hasattr(args[1], "is_pretend_pinned")
        if to_cpu or (len(known) < len(tensors) and not from_pinned):
            waits.append(name)
    elif any(tensor.ndim and not isinstance(tensor, PretendTensor) for tensor in tensors):
        raise RuntimeError(f"{name}: expected all tensors on one device, but found {DEVICE} and cpu")
    elif operator in INDEXING:
        waits.extend(name for leaf in tree_leaves(args[1]) if getattr(leaf, "dtype", None) == torch.bool)
    elif READS & set(operator.tags):
        waits.append(name)

    def unwrapped(leaf: Any) -> Any:
        return torch.device("cpu") if isinstance(leaf, torch.device) else getattr(leaf, "held", leaf)

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if to_cpu:
            return leaf.clone() if id(leaf) in known else leaf
        return known[id(leaf)] if id(leaf) in known else PretendTensor(leaf)

    return tree_map(wrapped, operator(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs)))


def pin_memory(tensor: Tensor) -> Tensor:
    """Return a copy that counts as pinned."""
    pinned: Any = tensor.clone()
    pinned.is_pretend_pinned = True
    return pinned


def lowered(operator: Any) -> Any:
    """Return an operator that computes in bfloat16, as under autocast on a GPU."""

    def in_bfloat16(*args: Any) -> Any:
        with torch.autocast(DEVICE, enabled=False):
            return operator(
                *tree_map(lambda leaf: leaf.bfloat16() if isinstance(leaf, Tensor) else leaf, args)
            )

    return in_bfloat16


class Device(backend_registration._DummyBackendModule):
    """The module `torch.pretend`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(DEVICE, Device())
every_operator, some_operators = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
every_operator.fallback(apply, "PrivateUse1")
every_operator.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for operator in (aten.linear.default, aten.conv2d.default, aten.conv_transpose2d.input):
    some_operators.impl(operator, lowered(operator), "AutocastPrivateUse1")
