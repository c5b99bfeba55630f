"""What a transform remembers of its last evaluation, and when that may be used again.

A remembered value is used only if recomputing it would give the same: the same tensors, context and
parameters, each at the same version in the same storage, under the same autocast. Gradients are those
of recomputing, too:

* a value without a graph is not used where a gradient is wanted;
* a graph that a backward pass has gone through (and freed) is not used again;
* going back from `x = f(z)` to `z` gives `z` as a function of `x` (`_Recall`).

The last result is held weakly: when it goes, all that was remembered with it goes.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from pyroflows.transforms.base import FlowTransform


def can_remember(*tensors: Tensor) -> bool:
    """Whether the versions of these tensors, and a transform's parameters, can be followed at all."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not any(tensor.is_inference() for tensor in tensors)


def _tensor_state(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor._version,
        tensor.requires_grad,
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    tensors = []
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                tensors.append(tensor)
    return tensors


def _module_state(module: nn.Module, tensors: list[Tensor]) -> tuple[Any, ...]:
    return (
        tuple(part.training for part in module.modules()),
        tuple(_tensor_state(tensor) for tensor in tensors),
    )


def _autocast_state(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _has_random_weights(module: nn.Module) -> bool:
    """Whether some weight is a `PyroSample`, so that evaluating twice gives two different maps."""
    return any(part.__dict__.get("_pyro_samples") for part in module.modules())


class Evaluation:
    """One evaluation `source -> result` of a transform, in the direction `forward`, with its ladj."""

    __slots__ = (
        "__weakref__",
        "_context",
        "_has_graph",
        "_recalled",
        "_result",
        "_spent",
        "_state",
        "_storages",
        "_wants_gradient",
        "forward",
        "ladj",
        "source",
    )

    @classmethod
    def of(
        cls,
        transform: FlowTransform,
        forward: bool,
        source: Tensor,
        result: Tensor,
        ladj: Tensor,
        context: Tensor | None,
    ) -> Evaluation | None:
        """The evaluation to remember; `None` where it can't be told when that would be stale."""
        tensors = _tensors(transform)
        inputs = [source, *tensors] if context is None else [source, context, *tensors]
        if result is source or any(t.is_inference() for t in inputs) or _has_random_weights(transform):
            return None
        differentiable = result.requires_grad or ladj.requires_grad
        if differentiable and not any(t.requires_grad for t in inputs):
            return None  # it depends on something that is neither an input nor a parameter
        return cls(transform, forward, source, result, ladj, context, tensors)

    def __init__(
        self,
        transform: FlowTransform,
        forward: bool,
        source: Tensor,
        result: Tensor,
        ladj: Tensor,
        context: Tensor | None,
        tensors: list[Tensor],
    ) -> None:
        inputs = [source, *tensors] if context is None else [source, context, *tensors]
        self.forward = forward
        self.source: Tensor | None = source
        self.ladj: Tensor | None = ladj
        self._context = None if context is None else weakref.ref(context)
        self._recalled: weakref.ref[Tensor] | None = None
        self._state = self._state_now(transform, source, result, context, tensors)
        # A weak reference to a storage keeps its address from being given to another one.
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in (result, *inputs)]
        self._wants_gradient = any(tensor.requires_grad for tensor in inputs)
        # A view made under `no_grad` may require a gradient, and has no graph all the same.
        self._has_graph = result.grad_fn is not None or ladj.grad_fn is not None
        self._spent: list[None] = []
        for output in (result, ladj):
            if output.grad_fn is not None:
                output.grad_fn.register_prehook(_Mark(self._spent))

        me = weakref.ref(self)

        def forget(_: object) -> None:
            evaluation = me()
            if evaluation is not None:
                evaluation.source = evaluation.ladj = evaluation._recalled = None

        self._result = weakref.ref(result, forget)

    @staticmethod
    def _state_now(
        transform: FlowTransform,
        source: Tensor,
        result: Tensor,
        context: Tensor | None,
        tensors: list[Tensor],
    ) -> tuple[Any, ...]:
        return (
            _tensor_state(source),
            _tensor_state(result),
            None if context is None else _tensor_state(context),
            _autocast_state(source.device.type),
            _module_state(transform, tensors),
        )

    def _usable(self, transform: FlowTransform, context: Tensor | None) -> bool:
        """Whether evaluating again would give these values, and their gradients where wanted."""
        source, result = self.source, self._result()
        if source is None or result is None:
            return False
        if (None if self._context is None else self._context()) is not context:
            return False
        if torch.is_grad_enabled() and self._wants_gradient and (self._spent or not self._has_graph):
            return False
        tensors = _tensors(transform)
        return self._state == self._state_now(transform, source, result, context, tensors)

    def recall(
        self, transform: FlowTransform, value: Tensor, context: Tensor | None, forward: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The source of `value` and the ladj of going back to it, if `value` is the result."""
        if forward == self.forward or value is not self._result():
            return None
        if not self._usable(transform, context):
            return None
        source, ladj = self._going_back(transform, value, context)
        self._recalled = weakref.ref(source)
        return source, ladj

    def recall_ladj(
        self, transform: FlowTransform, latent: Tensor, data: Tensor, context: Tensor | None
    ) -> Tensor | None:
        """log|det d data / d latent| if it came with this pair."""
        source, result = (latent, data) if self.forward else (data, latent)
        if result is not self._result() or self.ladj is None:
            return None
        recalled = self._recalled is not None and source is self._recalled()
        if not (recalled or source is self.source) or not self._usable(transform, context):
            return None
        if recalled:
            # Not kept from when the source was recalled: its graph would keep the result alive.
            ladj = -self._going_back(transform, result, context)[1]
        else:
            ladj = self.ladj if torch.is_grad_enabled() else self.ladj.detach()
        return ladj if self.forward else -ladj

    def _going_back(
        self, transform: FlowTransform, value: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The source and minus the ladj, as functions of the result where a gradient may be wanted."""
        assert self.source is not None
        assert self.ladj is not None
        if not self._has_graph:
            return self.source, -self.ladj
        if not torch.is_grad_enabled():
            return self.source.detach(), -self.ladj.detach()
        names, parameters = _trainable(transform)
        sentinel = value.new_zeros((), requires_grad=True)
        return _Recall.apply(
            transform,
            not self.forward,
            names,
            sentinel,
            value,
            self.source,
            self.ladj,
            context,
            *parameters,
        )


class _Mark:
    """A hook that notes that a backward pass has gone through a graph."""

    def __init__(self, spent: list[None]) -> None:
        self.spent = spent

    def __call__(self, gradients: object) -> None:
        self.spent.append(None)


def _trainable(transform: nn.Module) -> tuple[list[str], list[Tensor]]:
    named = [(name, p) for name, p in transform.named_parameters() if p.requires_grad]
    return [name for name, _ in named], [parameter for _, parameter in named]


class _Direction(nn.Module):
    """One direction of a transform as a function of its parameters, for `functional_call`."""

    def __init__(self, transform: FlowTransform, forward: bool) -> None:
        super().__init__()
        self.transform = transform
        self.direction = forward

    def forward(self, value: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform._compute(
            *self.transform._prepare(value, context, self.direction), self.direction
        )


class _Recall(torch.autograd.Function):
    r"""The `source` and ladj of the `value` that was computed from it, as a function of `value`.

    For the total derivative with respect to whatever `source` and the parameters came from, there is
    no need to differentiate the inverse: with x = f(z; p), the inverse's derivative through x and p
    together is that of `z` and of minus the ladj of `f`, both in the graph already. Only a gradient
    with respect to `value` itself needs the inverse, which is then recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        transform: FlowTransform,
        forward: bool,
        names: list[str],
        sentinel: Tensor,
        value: Tensor,
        source: Tensor,
        ladj: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.transform, ctx.direction, ctx.names = transform, forward, names
        ctx.save_for_backward(value, context, *parameters)
        return source.view_as(source), -ladj

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source_gradient, ladj_gradient = gradients
        value, context, *parameters = ctx.saved_tensors
        if not _is_wanted(value, ctx.next_functions[0][0], ctx.next_functions[1][0]):
            nothing = (None,) * (1 + len(parameters))
            return None, None, None, None, None, source_gradient, -ladj_gradient, *nothing

        direction = _Direction(ctx.transform, ctx.direction)
        names = [f"transform.{name}" for name in ctx.names]

        contexts = () if context is None else (context,)

        def recompute(value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
            values = dict(zip(names, others[len(contexts) :], strict=True))
            return torch.func.functional_call(direction, values, (value, *others[: len(contexts)]))

        vjp = torch.func.vjp(recompute, value, *contexts, *parameters)[1]
        value_gradient, *rest = vjp((source_gradient, ladj_gradient))
        if context is None:
            rest = [None, *rest]
        return None, None, None, None, value_gradient, None, None, *rest


def _is_wanted(value: Tensor, sentinel: Any, node: Any) -> bool:
    """Whether somebody may look at the gradient with respect to `value` itself.

    With `backward()` that shows on the tensor. With `torch.autograd.grad` (which leaves the
    sentinel, an input that nobody asks for, out) it does not show, so assume it.
    """
    if value.retains_grad or value._backward_hooks:
        return True
    if node is None or torch._C._will_engine_execute_node(sentinel):
        return False
    return torch._C._will_engine_execute_node(node)
