"""Weights files: official checkpoints in, safetensors with the network's configuration out.

``save_checkpoint`` writes one safetensors file whose header carries the configuration as JSON, so
weights and configuration cannot be torn apart. Pickled files are read with ``weights_only=True``
always, and Python objects beside the weights (optimisers, paths, NumPy numbers) are not built:
loading a file cannot run code.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from spikedim.errors import CheckpointError, SpikedimError
from spikedim.models.base import SpikingModel
from spikedim.models.registry import build_model, config_class, is_family
from spikedim.results import Result, plain
from spikedim.storage import write_bytes

_FORMAT = "spikedim-model-1"
_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "net", "module"),
    *("ema", "state_dict_ema", "model_ema"),
)
_PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.")
_BESIDE = (  # what training scripts store next to weights: command line, metrics, paths
    *("argparse.Namespace", "pathlib.PosixPath", "numpy.dtype", "_codecs.encode"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
)
_SHOWN = 3


@dataclass(frozen=True)
class LoadReport(Result):
    """What was loaded into a network.

    Attributes:
        path: the file.
        entries: state_dict entries loaded, always all of the network's.
        source_key: wrapper keys that were unpacked, such as ``"state_dict"``; empty if none.
        reshaped: entries whose kernel lost or gained trailing axes of length 1 (a Conv1d 1x1
            weight loaded into a Linear layer, for instance).
        dtype_changed: entries converted to the network's precision.
    """

    path: str
    entries: int
    source_key: str
    reshaped: tuple[str, ...]
    dtype_changed: tuple[str, ...]


def load_checkpoint(model: SpikingModel, path: str | Path) -> LoadReport:
    """Load weights into ``model``, every entry or none.

    Args:
        model: the network; untouched when the file does not fit.
        path: ``.safetensors``, or a file written by ``torch.save`` (``.pt``, ``.pth``, ``.tar``),
            bare or under a usual wrapper key, with or without ``module.``-like prefixes.

    Raises:
        CheckpointError: the file is missing, unreadable, holds no weights, non-finite ones, or
            does not fit; the message counts and samples every kind of mismatch.
    """
    found, source_key = _unwrap(_read(Path(path)), Path(path))
    own = model.state_dict()
    state = {_strip(name, own): value for name, value in found.items()}
    if len(state) < len(found):
        twice = sorted(name for name in found if name != _strip(name, own))
        raise CheckpointError(
            f"{path} holds several networks: entries such as {_some(twice)} have the names of "
            "others but for their prefix; save one network's state_dict() alone"
        )
    state = model.released_state(state)
    reshaped = []
    for name in own.keys() & state.keys():
        if state[name].shape != own[name].shape and _squeezed(state[name]) == _squeezed(own[name]):
            state[name] = state[name].reshape(own[name].shape)
            reshaped.append(name)
    _check_fit(state, own, Path(path))
    model.load_state_dict(state)
    changed = sorted(n for n in own if own[n].dtype != state[n].dtype)
    return LoadReport(str(path), len(own), source_key, tuple(sorted(reshaped)), tuple(changed))


def save_checkpoint(
    model: SpikingModel, path: str | Path, more: Mapping[str, str] | None = None
) -> Path:
    """Write weights and configuration to one safetensors file, atomically.

    Args:
        model: the network.
        path: the file.
        more: what else its header says, see :func:`stored_beside`.

    Raises:
        StorageError: the disk is full or the place is not writable; an older file is untouched.
    """
    from safetensors.torch import save

    tensors = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    config = {"family": model.family, "config": plain(model.config)}
    metadata = {"format": "pt", "spikedim": json.dumps({"version": _FORMAT, **config})}
    metadata |= more or {}
    return write_bytes(path, save(tensors, metadata=metadata))


def stored_beside(path: str | Path, name: str) -> str | None:
    """What :func:`save_checkpoint` was given as ``more[name]``; ``None`` for any other file."""
    try:
        return _metadata(Path(path)).get(name)
    except CheckpointError:
        return None


def is_ours(path: str | Path) -> bool:
    """Whether :func:`save_checkpoint` wrote the file."""
    return stored_beside(path, "spikedim") is not None


def load_model(path: str | Path) -> SpikingModel:
    """Rebuild a network from a file of :func:`save_checkpoint`, in eval mode.

    Raises:
        CheckpointError: unreadable, not written by ``save_checkpoint``, inconsistent, or of a
            network that was converted or adapted from one of your own.
    """
    path = Path(path)
    header = _metadata(path)
    try:
        stored = json.loads(header["spikedim"])
        if stored["version"] != _FORMAT:
            raise CheckpointError(
                f"{path} has format {stored['version']!r}, this version reads {_FORMAT!r}; "
                "load it with the spikedim that wrote it"
            )
        if not is_family(family := str(stored["family"])):
            raise CheckpointError(
                f"{path} holds a network of family {family!r}, which a configuration alone does "
                "not build; make it as before saving, then use load_checkpoint"
            )
        config = _restore(config_class(family), stored["config"])
        model = build_model(family, config)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, SpikedimError) as error:
        raise CheckpointError(
            f"{path} carries no usable network configuration ({_line(error)}); build the network "
            "with create_model and use load_checkpoint"
        ) from error
    dtypes = {t.dtype for t in _read(path).values() if t.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    load_checkpoint(model, path)
    return model.eval()


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    try:
        with safe_open(_existing(path), framework="pt") as file:
            return file.metadata() or {}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file ({_line(error)}); write it with "
            "save_checkpoint, or use load_checkpoint for other formats"
        ) from error


def _read(path: Path) -> Any:
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([(_Ignored, name) for name in _foreign(path)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"cannot read weights from {path}: the file is damaged, or it holds objects whose "
            "loading could run code; save the network's state_dict() alone"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"cannot read weights from {path}: {_line(error)}; the file is damaged, incomplete or "
            "not a safetensors or torch weights file"
        ) from error


class _Ignored:
    """In the place of an object stored beside the weights, whatever it was; does nothing."""

    def __new__(cls, *args: Any) -> Any:
        if all(isinstance(arg, type) for arg in args):  # items may follow: it may be a mapping
            return OrderedDict()
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _foreign(path: Path) -> list[str]:
    """Classes and functions that a torch file names and that do not belong to weights."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # files of before PyTorch 1.6 cannot be asked
        return list(_BESIDE)


def _existing(path: Path) -> Path:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        inside = sorted(path.glob("*.safetensors"))
        mend = f"name {inside[0]}" if inside else "check the path"
        raise CheckpointError(f"weights file {path} {kind}; {mend}")
    return path


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The innermost mapping of tensors, and the keys that led to it."""
    keys: list[str] = []
    while isinstance(content, Mapping):
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds no weights; expected a state_dict, as written by "
            "torch.save(model.state_dict(), path)"
        )
    other = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if other:
        raise CheckpointError(
            f"{path} holds no plain weights: {_some(other)} are no tensors; expected a state_dict, "
            f"bare or under {', '.join(_WRAPPERS)}"
        )
    return {str(k): v for k, v in content.items()}, ".".join(keys)


def _strip(name: str, own: Mapping[str, Tensor]) -> str:
    while name not in own:
        prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
        if prefix is None:
            break
        name = name[len(prefix) :]
    return name


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    missing = [n for n in own if n not in state]
    unexpected = [n for n in state if n not in own]
    shapes = [
        f"{n} {tuple(state[n].shape)} in the file, {tuple(own[n].shape)} in the network"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    faults = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (
            ("missing from the file", missing),
            ("unknown to the network", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit the network: {'; '.join(faults)}; "
            "check the variant, num_classes and input_shape"
        )
    bad = [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} entries hold NaN or infinity ({_some(bad)}); "
            "the run that wrote it diverged"
        )


def _restore(cls: Any, data: Mapping[str, Any]) -> Any:
    """Rebuild a dataclass, nested ones included, from its plain data."""
    hints = get_type_hints(cls)
    # an option that came later than the file has its default
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    odd = (needed - set(data)) | (set(data) - {f.name for f in fields(cls)})
    if odd:
        raise ValueError(f"{cls.__name__} fields differ: {_some(sorted(odd))}")
    return cls(
        **{
            name: _restore(hints[name], value)
            if is_dataclass(hints[name])
            else torch.tensor(value, dtype=torch.float64)
            if isinstance(value, list) and Tensor in get_args(hints[name])
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in data.items()
        }
    )


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    if not text or isinstance(error, KeyError):  # whose text is a key, of no use to a reader
        return "not a file of weights"
    return text[0][:160]
