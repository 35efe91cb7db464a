"""The exceptions a user can meet.

Every message is one line that says what is wrong, where, and what to do about it. The command
line prints that line, without a traceback, and exits with :attr:`Csa2GlmhaError.exit_code`.
"""

from __future__ import annotations


class Csa2GlmhaError(Exception):
    """Something the user can act on went wrong: a file, a model, a result out of tolerance."""

    exit_code = 1


class UsageError(Csa2GlmhaError):
    """The request itself does not make sense: a bad option, rank or recipe."""

    exit_code = 2


class CheckpointError(Csa2GlmhaError):
    """A checkpoint cannot be read, or is not of a supported architecture."""


class NetworkError(Csa2GlmhaError):
    """A network of the user's own cannot be built, or cannot be used."""


class DataError(Csa2GlmhaError):
    """Images or other calibration and evaluation data cannot be used."""


class ExportError(Csa2GlmhaError):
    """The ONNX export failed, or its outputs disagree with PyTorch's."""


class InterruptedRunError(Csa2GlmhaError):
    """Ctrl-C or SIGTERM ended a run that can be resumed; the message says how."""

    exit_code = 130


class OutputError(Csa2GlmhaError):
    """A result cannot be written without losing something."""


class UnfitError(OutputError):
    """A result that its file format cannot hold; others may be written all the same."""
