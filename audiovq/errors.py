"""The errors that a user's own input can cause; the command line prints them in one line, without a traceback."""


class AudioVQError(Exception):
    """Base of all errors with a message that is written for the user."""


class AudioError(AudioVQError):
    """An audio file or signal that cannot be used: missing, truncated, empty, not audio, not finite."""


class ConfigError(AudioVQError):
    """A configuration that does not parse or does not fit together."""


class ManifestError(AudioVQError):
    """A manifest, Kaldi file or corpus folder that is malformed; the message names file and line."""


class CheckpointError(AudioVQError):
    """A model folder or training state that is missing, damaged or of another format."""


class TokenError(AudioVQError):
    """Codes that are malformed or that belong to another model."""


class SpeakerError(AudioVQError):
    """A speaker that a model does not know, or has to be told and was not."""


class OutputExistsError(AudioVQError):
    """Output that would be overwritten."""


class ExportError(AudioVQError):
    """A model that cannot be exported in the form that was asked for."""


class TrainingError(AudioVQError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class WorkerError(AudioVQError):
    """A worker process that ended before its work did; what it had committed is kept."""


class Stopped(AudioVQError):
    """A signal asked a job to stop; what it had done is saved, and the same command goes on from there."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number
