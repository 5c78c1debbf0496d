"""One forward pass of a network, kept so that per-sample parameter gradients can be read off.

A layer's parameter gradient is a sum over its rows (timesteps, tokens, pixels) of an outer product
of its input with the gradient at its output. In eval mode samples do not interact, so one backward
pass over a whole batch gives every sample's rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from spikedim.errors import ModelError
from spikedim.models.base import SpikingModel
from spikedim.neurons import LIF, PLIF
from spikedim.ntk.layers import CONVOLUTIONS, Features, covered, features
from spikedim.ntk.passes import Call, Sink, fused, linear, neurons, norm, scale_of, tap

Readout = Callable[[nn.Module, Tensor, int | None], Tensor]


def logits(model: nn.Module, x: Tensor, T: int | None) -> Tensor:
    """The network's own output, [B, outputs]: the default readout.

    Raises:
        ModelError: T is given to a network whose forward takes none.
    """
    if isinstance(model, SpikingModel) or _takes_steps(model):
        return cast(Tensor, model(x, T))
    if T is not None:
        raise ModelError(
            f"T={T}, but forward of {type(model).__name__} takes the samples only; leave T out, or "
            "give a readout"
        )
    return cast(Tensor, model(x))


def _takes_steps(model: nn.Module) -> bool:
    try:
        inspect.signature(model.forward).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


class Capture:
    """One forward of a batch, ready to be differentiated one output at a time.

    Args:
        model: a network in eval mode.
        x: the batch; samples along axis 0, or axis 1 of an event input [T, B, ...].
        T: timesteps, as the network takes them.
        readout: what is differentiated, [B, outputs].
        samples: B.
        without: parameters that need no gradient although there is no rule for them.
        samples_first: layers of :func:`samples_first`.

    Raises:
        ModelError: the network is in training mode, an output is not finite, or the output depends
            on a parameter without a rule.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        T: int | None,
        readout: Readout,
        samples: int,
        without: Collection[str] = (),
        samples_first: Collection[str] = (),
    ) -> None:
        check_evaluating(model)
        self.samples = samples
        self.steps = steps_of(model, x, T)
        self.calls: list[Call] = []
        self.leaks: dict[str, Tensor] = {}
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._sink = Sink()
        self._samples_first = samples_first
        self._read: Call | None = None
        with torch.enable_grad(), self._replaced(model):
            self.output = readout(model, x, T)
        if self.output.ndim != 2 or len(self.output) != samples:
            raise ModelError(
                f"the readout gives shape {tuple(self.output.shape)} for {samples} samples; "
                "expected [samples, outputs]"
            )
        check_outputs(self.output)
        self._fold()
        self._check_covered(model, without)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.output.shape[1]

    def run(
        self,
        weights: Tensor,
        receive: Callable[[Call, Tensor], None],
        calls: Sequence[Call] | None = None,
        leaks: Sequence[str] = (),
        keep: bool = True,
    ) -> dict[str, Tensor]:
        """Differentiate one weighted sum of the outputs of every sample.

        Args:
            weights: [outputs].
            receive: gets each of the ``calls`` with the gradient at its output (behind the norm
                folded into it), while the backward pass runs.
            calls: the calls of interest; all by default. Nothing below the last of them runs.
            leaks: learned leaks of interest.
            keep: whether there will be another pass.

        Returns:
            Gradients of the leaks, [B] each.
        """
        wanted = self.calls if calls is None else calls
        chosen = set(map(id, wanted))

        def take(call: Call, gradient: Tensor) -> None:
            if id(call) in chosen:
                receive(call, gradient)

        sources = [*(call.anchor for call in wanted), *(self.leaks[name] for name in leaks)]
        if not sources or not self.output.requires_grad:
            return {name: torch.zeros_like(self.leaks[name]) for name in leaks}
        self._sink.receive = take
        try:
            found = torch.autograd.grad(
                self.output,
                sources,
                weights.expand_as(self.output),
                retain_graph=keep,
                allow_unused=True,
            )
        finally:
            self._sink.receive = None
        return {
            name: torch.zeros_like(self.leaks[name]) if gradient is None else gradient
            for name, gradient in zip(leaks, found[len(wanted) :], strict=True)
        }

    def gradients(self, cotangents: Tensor, last: bool) -> dict[str, Features]:
        """Per-sample parameter gradients of weighted sums of the outputs.

        Args:
            cotangents: [F, outputs], the weights of each of F sums.
            last: whether the graph may be freed.

        Returns:
            By parameter name, the gradients in factored or plain form.
        """
        rows: dict[int, list[Tensor | None]] = {id(c): [None] * len(cotangents) for c in self.calls}
        leaky: list[dict[str, Tensor]] = []
        for index, weights in enumerate(cotangents):

            def receive(call: Call, gradient: Tensor, index: int = index) -> None:
                rows[id(call)][index] = gradient

            keep = not (last and index == len(cotangents) - 1)
            leaky.append(self.run(weights, receive, leaks=list(self.leaks), keep=keep))
        out: dict[str, Features] = {}
        for call in self.calls:
            found = rows.pop(id(call))
            like = next((g for g in found if g is not None), None)
            if like is None:
                continue
            g = torch.stack([torch.zeros_like(like) if g is None else g for g in found])
            for module, name, value in self._features(call, g):
                key = self._names[id(getattr(module, name))]
                out[key] = out[key].joined(value) if key in out else value
        for name in self.leaks:
            out[name] = Features(torch.stack([found[name] for found in leaky])[:, :, None])
        return out

    def _features(self, call: Call, g: Tensor) -> Iterator[tuple[nn.Module, str, Features]]:
        """Gradients of a call's parameters and of those of the norm folded into it."""
        if call.norm is not None and call.scale is not None:
            norm = call.norm
            with torch.no_grad():
                middle = call.forward(call.input)
            for name, value in features(
                norm.module, middle, g, self.samples, self.steps, norm.merged
            ):
                yield norm.module, name, value
            g = g * call.scale.view(-1, *[1] * (g.ndim - 3))
        layer = call.module, call.input, g, self.samples, self.steps, call.merged
        for name, value in features(*layer):
            yield call.module, name, value

    def _fold(self) -> None:
        """Fold batch norms into the linear layers that nothing else reads."""
        readers: dict[int, int] = {}
        seen: dict[int, Any] = {}
        waiting = [self.output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen[id(node)] = node
            for below, _ in node.next_functions:
                call = getattr(below, "call", None)
                if call is not None:
                    readers[id(call)] = readers.get(id(call), 0) + 1
                waiting.append(below)
        kept = []
        for call in self.calls:
            before, call.before = call.before, None
            scale = scale_of(call.module) if isinstance(call.module, _BatchNorm) else None
            alone = before is not None and readers.get(id(before)) == 1
            if before is not None and alone and scale is not None and _invertible(scale):
                before.scale, before.norm = scale, call
                call.folded, call.input = True, None
            else:
                kept.append(call)
        self.calls = kept

    def _check_covered(self, model: nn.Module, without: Collection[str]) -> None:
        """Raise ModelError if the output depends on a parameter without a rule."""
        found = uncovered(model, self.output, without)
        if found:
            name, kind = found[0]
            raise ModelError(
                f"parameter {name} of {kind} has no per-sample gradient rule; pass fallback=True "
                "(autograd sample by sample for it), use method='jacobian' or 'loop', or freeze it "
                "with requires_grad_(False)"
            )

    @contextmanager
    def _replaced(self, model: nn.Module) -> Iterator[None]:
        handles: list[Any] = []
        leaks: list[tuple[PLIF, nn.Parameter]] = []
        changed: list[nn.Module] = []
        try:
            for name, module in model.named_modules():
                if isinstance(module, PLIF):
                    self._split_leak(f"{name}.w" if name else "w", module, leaks, handles)
                elif (forward := self._forward(name, module)) is not None:
                    module.forward = forward
                    changed.append(module)
            yield
        finally:
            for module in changed:
                del module.forward
            for handle in handles:
                handle.remove()
            for plif, parameter in leaks:
                del plif.w
                plif.w = parameter

    def _forward(self, name: str, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """What stands in for the module's forward, or ``None`` for the module itself."""
        original = module.forward
        if "forward" in vars(module):
            return None
        if type(module).forward is LIF.forward:
            assert isinstance(module, LIF)
            return partial(self._neurons, module, original)
        learns = any(p.requires_grad for p in module.parameters(False))
        if not (covered(module) and (learns or isinstance(module, _BatchNorm))):
            return None
        bases: tuple[Any, ...] = (*CONVOLUTIONS, _BatchNorm)
        base = next((c for c in bases if isinstance(module, c)), None)
        if base is not None and type(module).forward is not base.forward:
            own = {n for n, _ in module.named_parameters()} <= {"weight", "bias"}
            plain = partial(base.forward, module)
            return partial(self._merging, name, module, original, plain) if own else None
        if isinstance(module, nn.LayerNorm):
            if type(module).forward is not nn.LayerNorm.forward:
                return None
            original = partial(_layer_norm, module)
        return partial(self._layer, name, module, original)

    def _neurons(self, module: LIF, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        plain = module.activation is None and not module._observers and not module._streaming
        if not (plain and x.requires_grad and fused(module.params)):
            return original(x)
        spikes: Tensor = neurons(x, module.params)
        return spikes

    def _layer(
        self, name: str, module: nn.Module, original: Callable[[Tensor], Tensor], input: Tensor
    ) -> Tensor:
        if not isinstance(input, Tensor):  # of a class derived from torch's: without a rule
            return original(input)
        x = self._own_tokens(input) if isinstance(module, nn.Embedding) else input
        anchor = torch.zeros((), requires_grad=True)
        call = Call(name, module, original, x.detach(), anchor, name in self._samples_first)
        out: Tensor
        if isinstance(module, _BatchNorm):
            before = getattr(x.grad_fn, "call", None)
            call.before = before if before is not None and _foldable(before.module, x) else None
            out = norm(x, call.anchor, call, self._sink)
        elif isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            if isinstance(module, nn.Linear):
                if self._read is not None and _same_memory(self._read.input, x):
                    call.rows = self._read.rows
                self._read = call
            out = linear(x, call.anchor, call, self._sink)
        else:
            with torch.set_grad_enabled(isinstance(module, nn.LayerNorm)):
                y = original(x)
            out = tap(y, call.anchor, call, self._sink)
        self.calls.append(call)
        return out

    def _merging(
        self,
        name: str,
        module: nn.Module,
        original: Callable[[Tensor], Tensor],
        plain: Callable[[Tensor], Tensor],
        input: Tensor,
    ) -> Tensor:
        """A subclass of torch's layer that merges time with the samples, as SpikingJelly's do.

        One that does anything else is left without a rule.
        """
        x = input
        with torch.no_grad():
            expected = original(x)
            merges = x.ndim > 2 and _same(expected, lambda: plain(x.flatten(0, 1)))
            known = merges or _same(expected, lambda: plain(x))
        if merges:
            return self._layer(name, module, plain, x.flatten(0, 1)).view(expected.shape)
        return self._layer(name, module, plain, x) if known else original(x)

    def _own_tokens(self, ids: Tensor) -> Tensor:
        """Positions that all samples share, [N] or [1, N], as one row for each sample."""
        if ids.ndim == 2 and len(ids) == 1:
            return ids.expand(self.samples, -1)
        counted = ids.ndim == 1 and torch.equal(ids, torch.arange(len(ids)).to(ids))
        return ids.expand(self.samples, -1) if counted else ids

    def _split_leak(
        self, name: str, module: PLIF, replaced: list[tuple[PLIF, nn.Parameter]], handles: list[Any]
    ) -> None:
        """Give every sample its own copy of a learned leak, so that its gradient is per sample."""
        parameter = module.w
        copies = parameter.detach().expand(self.samples).clone().requires_grad_()
        replaced.append((module, parameter))
        del module.w
        self.leaks[name] = copies

        def shape(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            module.w = copies.view(-1, *[1] * (inputs[0].dim() - 2))

        handles.append(module.register_forward_pre_hook(shape))


def _foldable(module: nn.Module, out: Tensor) -> bool:
    """Whether a batch norm that reads the output of this layer scales its output channels."""
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)) or getattr(module, "groups", 1) > 1:
        return False
    return isinstance(module, CONVOLUTIONS) or out.ndim == 2


def samples_first(model: nn.Module, x: Tensor, T: int | None, readout: Readout) -> frozenset[str]:
    """Layers that read [B, ...] where others may read [T, B, ...].

    The two look alike in a batch of T samples with T tokens, so it is seen on one sample.

    Args:
        model, x, T, readout: as of :class:`Capture`, ``x`` a single sample.
    """
    found: set[str] = set()
    if steps_of(model, x, T) == 1:
        return frozenset()

    def look(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        value = next(iter((*args, *named.values())), None)
        if not isinstance(value, Tensor):  # a subclass may take anything
            return
        axes = value.shape if isinstance(module, nn.Embedding) else value.shape[:-1]
        if len(axes) > 1 and axes[0] == 1 and axes[1] != 1:
            found.add(name)

    handles = [
        module.register_forward_pre_hook(partial(look, name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding))
    ]
    try:
        with torch.no_grad():
            readout(model, x, T)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(found)


def check_outputs(out: Tensor) -> None:
    """Raise ModelError where an output is NaN or infinite."""
    if not torch.isfinite(out.detach()).all():
        raise ModelError(
            "the network gives NaN or infinity; look for a division by 0, a training that diverged "
            "or damaged weights"
        )


def _same(expected: Tensor, found: Callable[[], Tensor]) -> bool:
    try:
        return torch.equal(expected.flatten(), found().flatten())
    except (ValueError, RuntimeError):  # another number of axes, or of channels
        return False


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


def _invertible(scale: Tensor) -> bool:
    """Whether gradients can be multiplied by it and divided again."""
    return bool((scale.abs() > torch.finfo(scale.dtype).tiny ** 0.5).all())


def parameters_of(model: nn.Module) -> int:
    """Number of differentiated parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_evaluating(model: nn.Module) -> None:
    """Raise ModelError if a layer in training mode makes samples influence each other."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"{name or type(model).__name__} keeps no running statistics, so that samples "
                "influence each other: build it with track_running_stats=True"
            )
        if module.training and isinstance(module, (_BatchNorm, nn.modules.dropout._DropoutNd)):
            raise ModelError(
                f"{name or type(model).__name__} is in training mode, where samples influence each "
                "other: call model.eval() first (and calibrate_batchnorm on a fresh network)"
            )


def uncovered(
    model: nn.Module, output: Tensor, without: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Name and layer type of each parameter that a captured output still depends on directly."""
    others = {
        f"{path}.{name}" if path else name: (parameter, type(module).__name__)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    }
    others = {name: value for name, value in others.items() if name not in without}
    if not others or not output.requires_grad:
        return []
    reached = set()
    seen: dict[int, Any] = {}
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        if (variable := getattr(node, "variable", None)) is not None:
            reached.add(id(variable))
        waiting.extend(below for below, _ in node.next_functions)
    return [(name, kind) for name, (parameter, kind) in others.items() if id(parameter) in reached]


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """The layer without gradients of its parameters."""
    weight, bias = (None if p is None else p.detach() for p in (module.weight, module.bias))
    return functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def steps_of(model: nn.Module, x: Tensor, T: int | None) -> int:
    """Timesteps that the network simulates for ``x``."""
    if isinstance(model, SpikingModel):
        return int(model._check_input(x, T)[1])
    return 1 if T is None else int(T)


def neurons_of(model: nn.Module) -> Sequence[LIF]:
    """LIF layers of the network whose parameters are known."""
    return [module for module in model.modules() if isinstance(module, LIF) and module.known]
