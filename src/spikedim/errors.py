"""One error type per kind of fault, all under :class:`SpikedimError`.

A message names the offending thing, its value, what was expected and what to do.
The command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations


class SpikedimError(Exception):
    """A fault the user can mend: base of every error spikedim raises on purpose."""


class ConfigError(SpikedimError):
    """An argument, option or configuration value is out of its domain."""


class DataError(SpikedimError):
    """A data set, file or array is missing, corrupt or unusable."""


class ModelError(SpikedimError):
    """A network is unknown, misshapen or asked for something it cannot do."""


class CheckpointError(ModelError):
    """A weights file cannot be read or does not fit the network."""


class StorageError(SpikedimError):
    """A result could not be written or a run directory cannot be used."""


class DeviceError(SpikedimError):
    """The requested compute device does not exist here."""


class BudgetError(SpikedimError):
    """The work does not fit the memory, time or energy budget that was given."""


class SpikedimWarning(UserWarning):
    """A result is usable but limited; the text says by what."""
