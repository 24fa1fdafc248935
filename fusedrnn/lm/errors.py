"""What a user can get wrong. Every message is one line: the command line prints it as it is and exits with status 2."""


class BadInput(ValueError):
    """What was asked for cannot be done with what was given."""


class ConfigError(BadInput):
    """An option has a value that makes no sense, alone or with the others."""


class CorpusError(BadInput):
    """A corpus is missing, empty, too short, not UTF-8, or not the file its checksum promises."""


class CorpusUnavailable(CorpusError):
    """A named corpus is nowhere on this machine and could not be downloaded."""


class RunFolderError(BadInput):
    """A run folder would be overwritten, or what it holds cannot be read back."""


class TrainingDiverged(BadInput):
    """The loss stopped being a number: the learning rate is too high for this model without (more) clipping."""
