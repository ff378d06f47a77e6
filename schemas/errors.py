"""Every error the project raises on purpose, as one tree.

    FacetstreamError
    |-- UsageError              exit 2: wrong arguments or paths
    |   |-- ConfigError         a configuration key, file or variable is wrong
    |-- DependencyError         exit 3: something outside is unavailable
    |   |-- BrokerError         Kafka cannot be reached, or lacks a topic
    |   |-- StoreError          the RocksDB directory cannot be opened, read or written
    |   |   |-- StoreLockedError      another process writes to it
    |   |   |-- StoreMismatchError    it belongs to another generation, model or codebook
    |   |   `-- StoreCorruptError     its bytes do not decode
    |   `-- ArtifactError       a model artifact is missing, altered or of another shape
    |-- RecordError             one record cannot be applied: becomes a dead letter
    `-- NotFoundError           exit 1: the thing asked for does not exist

Messages name the thing, the value, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class FacetstreamError(Exception):
    """Base of all; catch it at a process boundary to print a clear message.

    Attributes:
        exit_code: what the command line exits with when this reaches it.
    """

    exit_code: ClassVar[int] = 1


class UsageError(FacetstreamError):
    """The caller asked for something that makes no sense; fix the call."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is unknown, malformed or contradicts another."""


class DependencyError(FacetstreamError):
    """Something outside this process is unavailable; retrying later may help."""

    exit_code = 3


class BrokerError(DependencyError):
    """Kafka cannot be reached, refuses us, or lacks a topic."""


class BrokerAwayError(BrokerError):
    """Kafka, or a partition's leader, did not answer in time; it may later."""


class FencedError(BrokerError):
    """Another process has taken this one's place at the broker; trying again would only push that one out."""


class StoreError(DependencyError):
    """The store's directory cannot be opened, read or written."""


class StoreLockedError(StoreError):
    """Another process holds the store for writing."""


class StoreMismatchError(StoreError):
    """The store belongs to another generation, model or codebook than the one given."""


class StoreCorruptError(StoreError):
    """Bytes in the store do not decode; never repaired or wiped automatically."""


class ArtifactError(DependencyError):
    """A model artifact is missing, altered, or does not fit its manifest."""


class NotFoundError(FacetstreamError):
    """The item, leaf or other thing asked for does not exist."""


class RecordError(FacetstreamError):
    """One record cannot be applied.

    Attributes:
        reason: a stable word from :class:`schemas.dead_letters.Reason`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
