"""Equal gradient buckets in every run (K2).

DistributedDataParallel reduces the first backward in one bucket in the order of declaration, then builds its buckets anew in the order in which
gradients became ready, and keeps those. All-reduce adds the ranks' values in an order that depends on where an element lies in its bucket, so with
more than two ranks the first step after a resume would differ in the last bits from the same step of an uninterrupted run: even with one bucket,
because the order inside it changes.

The remedy makes the buckets a function of the model alone, in fresh and resumed runs: before the first real step, a backward that reaches the
parameters in reverse order of declaration and adds exact zeros. DDP then builds its buckets from that order, which is close to the real one, so
communication still overlaps with backward. It happens before anything is loaded, costs one all-reduce, and leaves parameters, buffers, generators
and gradients as they were.
"""

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

log = logging.getLogger("holdfast")


def settle_buckets(targets: dict[str, Any]) -> list[str]:
    """Fixes the buckets of every DistributedDataParallel among `targets`. All ranks call it together. Returns why some could not be fixed:
    those models resume exactly but for the last bits of the first step's gradients."""
    reasons = []
    for name, target in targets.items():
        target = getattr(target, "_orig_mod", target)
        if isinstance(target, DistributedDataParallel) and (target.static_graph or not target.find_unused_parameters):
            # With find_unused_parameters DDP never rebuilds, so its buckets are the same in every run already.
            reason = _obstacle(target)
            if reason is None:
                _settle(target)
            else:
                reasons.append(f"{name}: {reason}")
    for reason in reasons:
        log.warning("holdfast: the first step after a resume may differ in its last bits (K2): %s", reason)
    return reasons


class _Touch(torch.autograd.Function):  # type: ignore[misc]  # torch is Any for mypy
    """Hands a gradient through and gives its parameter one of exact zeros."""

    @staticmethod
    def forward(ctx: Any, through: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        ctx.parameter = parameter.detach()
        return through.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grads[0], torch.zeros_like(ctx.parameter)


class _Chain(nn.Module):  # type: ignore[misc]
    """Backward through it reaches the last parameter first, each before the next."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        super().__init__()
        self._chain = tuple(parameters)

    def forward(self, through: torch.Tensor) -> torch.Tensor:
        for parameter in self._chain:
            through = _Touch.apply(through, parameter)
        return through


def _settle(ddp: DistributedDataParallel) -> None:
    parameters = [p for p in ddp.module.parameters() if p.requires_grad]
    module = ddp.module
    ddp._modules["module"] = _Chain(parameters)
    ddp.require_forward_param_sync = False  # no broadcast of buffers: the chain has none; the forward sets it again
    try:
        with torch.enable_grad():
            ddp(torch.zeros((), device=parameters[0].device, requires_grad=True)).backward()
            ddp.reducer._rebuild_buckets()
    finally:
        ddp._modules["module"] = module
        for parameter in parameters:
            parameter.grad = None


def _obstacle(ddp: DistributedDataParallel) -> str | None:
    """Why the buckets cannot be settled from outside, or None."""
    parameters = [p for p in ddp.module.parameters() if p.requires_grad]
    if not hasattr(getattr(ddp, "reducer", None), "_rebuild_buckets"):
        return f"torch {torch.__version__} has no way to rebuild the buckets"
    if ddp.static_graph:
        return "static_graph=True records its first backward"
    if ddp.mixed_precision is not None:
        return "DDP mixed precision keeps gradients of its own"
    if getattr(ddp, "_comm_hooks", None):
        return "a communication hook would see the zeros"
    if getattr(ddp, "_delay_all_reduce_params", None):
        return "delay_all_reduce_named_params is set"
    if len({p.device for p in parameters}) > 1:
        return "parameters on several devices become ready in no fixed order"
    if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in ddp.module.modules()):
        return "sparse gradients"
    if any(p._post_accumulate_grad_hooks or p._backward_hooks for p in parameters):
        return "hooks on parameters would run"
    if any(p.grad is not None for p in parameters):
        return "restore() was called after a backward; call it before"
    return None
