"""Many models of one architecture as one: their weights in a matrix, their passes in one kernel.

`Weights.flat` is [K, P], a model a row, so an optimiser step for all K is a handful of elementwise
kernels. A flat `nn.Sequential` of the usual layers runs as batched matrix products and grouped
convolutions; any other module runs under `torch.func.vmap`; a stack of one runs the module itself.
Batched kernels may differ from a loop in the last bits, so the stack is the unit that defines them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedkd.pooling import ByTwos, quicken
from fedkd.types import State

_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.Identity)
_POOLS = (nn.MaxPool2d, ByTwos, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
_RECOGNISED = (*_ELEMENTWISE, *_POOLS, *_NORMS, nn.Flatten, nn.Linear, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class Weights:
    """K models: trainable parameters `flat` [K, P], and by name what is not trained, [K, …] each.

    That is buffers, and parameters which their module has frozen (`requires_grad=False`).
    """

    flat: Tensor
    buffers: Mapping[str, Tensor]

    def __len__(self) -> int:
        return self.flat.shape[0]

    def clone(self) -> Weights:
        return Weights(self.flat.clone(), {k: v.clone() for k, v in self.buffers.items()})

    def to(self, device: torch.device) -> Weights:
        return Weights(self.flat.to(device), {k: v.to(device) for k, v in self.buffers.items()})

    def take(self, order: Tensor) -> Weights:
        return Weights(self.flat[order], {k: v[order] for k, v in self.buffers.items()})

    def row(self, k: int) -> State:
        """One model as tensors for a file: `weights` [P] and `buffer/NAME`."""
        return {"weights": self.flat[k]} | {f"buffer/{n}": v[k] for n, v in self.buffers.items()}


def gather(states: Sequence[State]) -> Weights:
    """The inverse of `Weights.row` for several models."""
    names = sorted(n for n in states[0] if n.startswith("buffer/"))
    return Weights(
        torch.stack([s["weights"] for s in states]),
        {n.removeprefix("buffer/"): torch.stack([s[n] for s in states]) for n in names},
    )


class Network:
    """An architecture: where each parameter lies in a row of `Weights.flat`, and how to run it."""

    def __init__(self, module: nn.Module) -> None:
        self._given = copy.deepcopy(module).eval()
        self._template = quicken(copy.deepcopy(self._given))
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in trained]
        self.shapes = [p.shape for _, p in trained]
        sizes = [math.prod(s) for s in self.shapes]
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.parameters = sum(sizes)
        self._frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
        self.buffers = {n: b[0] for n, b in self._untrained(module).items()}
        kinds = [type(m) for m in module.modules()]
        self.convolutional = any(issubclass(k, nn.Conv2d) for k in kinds)
        # convolutions run up to twice as fast channels last, and group normalisation half as fast;
        # their kernels lie in that order in a row, so that a single model needs no copies
        self.channels_last = self.convolutional and nn.GroupNorm not in kinds
        self.batch_statistics = any(issubclass(k, nn.modules.batchnorm._BatchNorm) for k in kinds)
        # a layer with weights in two places: functional_call would leave the call's in it
        kept = [id(m) for _, m in module.named_modules(remove_duplicate=False) if _keeps(m)]
        self._repeats = len(set(kept)) < len(kept)
        # every name of a parameter and its first: one may be that of several layers
        first = {id(module.get_parameter(n)): n for n in self.names}
        self._first = {
            f"{path}.{own}".lstrip("."): first[id(p)]
            for path, owner in module.named_modules()
            for own, p in owner._parameters.items()
            if id(p) in first
        }
        self._layers = None if self._repeats else _recognise(self._template)
        # none of the layers that we know does; of others nobody can tell
        self.may_draw = self._layers is None
        self._together: bool | None = None  # not tried yet

    def stackable(self, sample: Tensor) -> bool:
        """Whether several models can go in one pass; `sample` [B, …] is tried, once for all.

        vmap refuses a module that draws at random or decides by the values that it sees.
        """
        if self._together is None:
            self._together = not self._repeats and self._tried(sample.cpu())
        return self._together

    def _tried(self, sample: Tensor) -> bool:
        weights = self.weights(self._given)
        pair = weights.take(torch.zeros(2, dtype=torch.int64))
        if self._layers is not None:
            probe = torch.arange(sample.numel()).view_as(sample).sin()
            try:
                with torch.no_grad():
                    found = self.bind(pair, 0, 2)[1](torch.stack([probe, probe]), False)
                    alone = self.bind(weights, 0, 1)[1](probe.unsqueeze(0), False)
                torch.testing.assert_close(found, alone.expand_as(found), rtol=1e-3, atol=1e-3)
            except Exception:  # of whatever kind: this pass is not the model's, vmap's may be
                self._layers = None
        leaves, forward = self.bind(pair, 0, 2)
        try:
            total = forward(torch.stack([sample, sample]), True).sum()
            torch.autograd.grad(total, leaves, materialize_grads=True)
        except Exception:  # whatever a module does that was not written for vmap
            return False
        return True

    def weights(self, module: nn.Module) -> Weights:
        """One module's parameters and buffers as a stack of one (copies)."""
        parameters = [module.get_parameter(n).detach().float().unsqueeze(0) for n in self.names]
        return Weights(self.flattened(parameters), self._untrained(module))

    def _untrained(self, module: nn.Module) -> dict[str, Tensor]:
        """Buffers and frozen parameters of one module, [1, …] each (copies)."""
        found = dict(module.named_buffers()) | {n: module.get_parameter(n) for n in self._frozen}
        return {n: t.detach().clone().unsqueeze(0) for n, t in sorted(found.items())}

    def module(self, weights: Weights, k: int = 0) -> nn.Module:
        """An ordinary module with copies of the k-th model's weights."""
        module = copy.deepcopy(self._given)
        for name, view in zip(self.names, self.views(weights.flat[k]), strict=True):
            module.get_parameter(name).data = view.clone()
        for name, kept in weights.buffers.items():
            into = module.get_parameter(name) if name in self._frozen else module.get_buffer(name)
            into.data.copy_(kept[k])
        return module

    def views(self, row: Tensor) -> list[Tensor]:
        """Every parameter as a view of its part of `row` [.., P], in its own shape."""
        lead = row.shape[:-1]
        views = []
        for at, shape in zip(self.offsets, self.shapes, strict=True):
            part = row.narrow(-1, at, math.prod(shape))
            if self.channels_last and len(shape) == 4:
                o, i, h, w = shape
                views.append(part.view(*lead, o, h, w, i).movedim(-1, -3))
            else:
                views.append(part.view((*lead, *shape)))  # of a single number, an empty shape
        return views

    def flattened(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parameters or gradients [K, …], in the order of `names`, as rows [K, P] of `Weights`."""
        ordered = [t.movedim(-3, -1) if self.channels_last and t.dim() == 5 else t for t in tensors]
        return torch.cat([t.reshape(len(t), -1) for t in ordered], 1)

    def bind(
        self, weights: Weights, first: int, last: int
    ) -> tuple[list[Tensor], Callable[[Tensor, bool], Tensor]]:
        """Leaves that share memory with rows first..last, and a forward pass over them.

        The pass takes inputs [n, B, …] and whether to train, and gives logits [n, B, C]. The leaves
        are in the order of `names`; `flattened` makes rows of their gradients.
        """
        buffers = {n: b[first:last] for n, b in weights.buffers.items()}
        if last - first == 1:
            return self._bind_one(weights.flat[first], {n: b[0] for n, b in buffers.items()})
        leaves = [v.detach().requires_grad_() for v in self.views(weights.flat[first:last])]
        named = dict(zip(self.names, leaves, strict=True))
        if self._layers is not None:
            layers, every = self._layers, {n: named[f] for n, f in self._first.items()}
            every |= {n: buffers[n] for n in self._frozen}
            return leaves, lambda x, training: _run(layers, every, buffers, x, training)

        def mapped(x: Tensor, training: bool) -> Tensor:
            self._template.train(training)
            call = vmap(lambda p, b, inputs: functional_call(self._template, (p, b), (inputs,)))
            logits: Tensor = call(named, buffers, x)
            return logits

        return leaves, mapped

    def bind_each(
        self,
        weights: Weights,
        first: int,
        last: int,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Callable[[Tensor, Tensor], list[Tensor]]:
        """The gradient of every single sample for rows first..last, in training mode.

        It is a function of inputs [n, B, …] and labels [n, B], and gives for each parameter, in the
        order of `names`, [n, B, …]. `loss` maps logits [1, C] and labels [1] to the loss [1]. The
        model sees one sample at a time, so nothing in it can depend on the others; vmap refuses one
        that decides by values or writes what it saw into a buffer.
        """
        named = dict(zip(self.names, self.views(weights.flat[first:last]), strict=True))
        buffers = {n: b[first:last] for n, b in weights.buffers.items()}

        def one(
            leaves: Mapping[str, Tensor], kept: Mapping[str, Tensor], sample: Tensor, label: Tensor
        ) -> Tensor:
            inputs, every = (sample.unsqueeze(0),), {n: leaves[f] for n, f in self._first.items()}
            logits = functional_call(
                self._template, (every, dict(kept)), inputs, tie_weights=not self._repeats
            )
            return loss(logits.float(), label.unsqueeze(0)).sum()

        own = vmap(grad(one), in_dims=(None, None, 0, 0), randomness="different")
        every = vmap(own, randomness="different")

        def gradients(inputs: Tensor, labels: Tensor) -> list[Tensor]:
            self._template.train()
            return list(every(named, buffers, inputs, labels).values())

        return gradients

    def _bind_one(
        self, row: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Callable[[Tensor, bool], Tensor]]:
        module = copy.deepcopy(self._template).to(row.device)
        leaves: list[Tensor] = [module.get_parameter(n) for n in self.names]
        for parameter, view in zip(leaves, self.views(row), strict=True):
            parameter.data = view
        for name, kept in buffers.items():
            owner, _, attribute = name.rpartition(".")
            if name in self._frozen:
                module.get_parameter(name).data = self._laid_out(kept)
            else:
                module.get_submodule(owner)._buffers[attribute] = kept

        def single(x: Tensor, training: bool) -> Tensor:
            if module.training != training:
                module.train(training)
            one = x[0]
            if self.channels_last and one.dim() == 4:
                one = one.contiguous(memory_format=torch.channels_last)
            logits: Tensor = module(one)
            return logits.unsqueeze(0)

        return leaves, single

    def _laid_out(self, frozen: Tensor) -> Tensor:
        """A frozen kernel in the order in which trained ones lie in a row."""
        if self.channels_last and frozen.dim() == 4:
            return frozen.contiguous(memory_format=torch.channels_last)
        return frozen


def _keeps(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers of its own."""
    return any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))


def _recognise(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a flat Sequential if the batched pass below knows them all.

    One activation may stand in several places; nothing may have been hung on a layer that the pass
    below would not call.
    """
    if type(module) is not nn.Sequential:
        return None
    # not `named_children`, which leaves out what was there before
    layers = [(name, layer) for name, layer in module._modules.items() if layer is not None]
    known = all(type(layer) in _RECOGNISED and _bare(layer) for _, layer in layers)
    plain = all(
        (layer.padding_mode == "zeros" and layer.groups == 1)
        if isinstance(layer, nn.Conv2d)
        else not isinstance(layer, nn.Flatten) or (layer.start_dim, layer.end_dim) == (1, -1)
        for _, layer in layers
    )
    affine = all(not isinstance(layer, _NORMS) or layer.weight is not None for _, layer in layers)
    usual = all(
        not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        or (layer.track_running_stats and layer.momentum is not None)
        for _, layer in layers
    )
    return layers if known and plain and affine and usual else None


def _bare(layer: nn.Module) -> bool:
    """Whether a layer is what its class says: no hooks, no other parameters, no children."""
    own = {name for name, _ in layer.named_parameters()}
    return own <= {"weight", "bias"} and not (layer._forward_hooks or layer._forward_pre_hooks)


def _run(
    layers: Sequence[tuple[str, nn.Module]],
    leaves: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    x: Tensor,
    training: bool,
) -> Tensor:
    """The batched pass. Images travel as [B, n*C, H, W], vectors as [n, B, F]."""
    n = x.shape[0]
    if x.dim() == 5:
        x = x.transpose(0, 1).flatten(1, 2)
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            weight = leaves[f"{name}.weight"].transpose(1, 2)
            bias = leaves.get(f"{name}.bias")
            x = (
                torch.bmm(x, weight)
                if bias is None
                else torch.baddbmm(bias.unsqueeze(1), x, weight)
            )
        elif isinstance(layer, nn.Conv2d):
            bias = leaves.get(f"{name}.bias")
            x = F.conv2d(
                x,
                leaves[f"{name}.weight"].flatten(0, 1),
                None if bias is None else bias.flatten(),
                layer.stride,
                layer.padding,
                layer.dilation,
                groups=n,
            )
        elif isinstance(layer, nn.Flatten):
            images = x.dim() == 4
            x = x.view(x.shape[0], n, -1).transpose(0, 1) if images else x.flatten(2)
        elif isinstance(layer, nn.GroupNorm):
            x = F.group_norm(x, n * layer.num_groups, *_affine(leaves, name), layer.eps)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            x = _batch_norm(layer, name, leaves, buffers, x, training)
        else:
            x = layer(x)
    return x


def _affine(leaves: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return leaves[f"{name}.weight"].flatten(), leaves[f"{name}.bias"].flatten()


def _batch_norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d,
    name: str,
    leaves: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    x: Tensor,
    training: bool,
) -> Tensor:
    """Every client normalises by its own batch: n*C channels are n clients' C channels."""
    mean, variance = (buffers[f"{name}.running_{k}"].view(-1) for k in ("mean", "var"))
    if training:
        buffers[f"{name}.num_batches_tracked"].add_(1)
    momentum = layer.momentum
    assert momentum is not None  # or it would not be recognised
    vectors = x.dim() == 3
    flat = x.transpose(0, 1).flatten(1) if vectors else x
    flat = F.batch_norm(flat, mean, variance, *_affine(leaves, name), training, momentum, layer.eps)
    return flat.view(x.shape[1], x.shape[0], -1).transpose(0, 1) if vectors else flat
