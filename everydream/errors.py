"""The errors a user can meet, drawn as a tree.

    EveryDreamError            message for a user; exit code 2, no traceback without --debug
    ├── ConfigError            the settings do not make sense, or name something that is not there
    ├── DataError              no usable image, or a rejected one where `data.strict` forbids it
    ├── FormatError            a model file that cannot be read or written
    ├── ResumeError            a checkpoint that does not continue this run
    ├── DiskError              not enough space for what is about to be written
    └── TrainingError          the run itself cannot go on (three non-finite losses in a row)

Each message says what happened, why it matters and what to do, with the value and the path in it.
A mistake of ours is an `assert`, not one of these.
"""


class EveryDreamError(Exception):
    """Base of all errors that are meant for a user."""


class ConfigError(EveryDreamError):
    """The settings are wrong; the message lists every problem with its key path."""


class DataError(EveryDreamError):
    """The images cannot be trained on."""


class FormatError(EveryDreamError):
    """A model file cannot be read or written."""


class ResumeError(EveryDreamError):
    """A checkpoint does not continue the run that was asked for."""


class DiskError(EveryDreamError):
    """There is not enough free space for what is about to be written."""


class TrainingError(EveryDreamError):
    """The run cannot go on."""
