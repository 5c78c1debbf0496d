"""``spikedim info``: versions, devices, kernels and folders in use."""

from __future__ import annotations

from dataclasses import dataclass

from spikedim.cli import options
from spikedim.cli.output import emit
from spikedim.results import Result, Table


@dataclass(frozen=True)
class Info(Result):
    """What this installation is made of."""

    versions: dict[str, str]
    device: str
    threads: int
    kernel: str
    data_root: str
    models: int
    conventions: tuple[str, ...]

    def tables(self) -> list[Table]:
        """One row per fact."""
        rows = [(name, version) for name, version in self.versions.items()]
        rows += [
            ("device", self.device),
            ("CPU threads", str(self.threads)),
            ("LIF kernel", self.kernel),
            ("data samples", self.data_root),
            ("networks", str(self.models)),
            ("energy conventions", ", ".join(self.conventions)),
        ]
        return [Table("spikedim", ("what", "value"), rows)]


def info(data_root: options.DataRoot = None, as_json: options.Json = False) -> None:
    """Show versions, device, the LIF kernel that is used and where data samples are looked for.

    Example: spikedim info --json
    """
    import torch

    from spikedim.models import list_models
    from spikedim.neurons import kernel_info
    from spikedim.profiling import list_conventions
    from spikedim.provenance import versions

    gpu, lif = torch.cuda.is_available(), kernel_info()
    emit(
        Info(
            versions(),
            torch.cuda.get_device_name() if gpu else "cpu (torch finds no GPU)",
            torch.get_num_threads(),
            f"{lif.kernel} ({lif.reason})",
            str(data_root) if data_root else "not set (SPIKEDIM_DATA or --data-root)",
            len(list_models()),
            tuple(list_conventions()),
        ),
        as_json,
    )
