"""The exceptions of this project. Each message says what is wrong, where, and what to do.

A message names an argument of the Python calls in backquotes, ```calibration=```. The command line prints the flag,
``--calibration``.
"""


def reason(error: BaseException) -> str:
    """What another library raised, in one line: its message may have paragraphs."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class GoldenStickError(Exception):
    """Anything a user can mend. The command line prints its message and nothing else."""


class PlanError(GoldenStickError):
    """What was asked cannot be done; found before a weight is read. ``problems`` holds one line each."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class PluginError(GoldenStickError):
    """A plugin is missing, broken, claimed twice, or answers with something it may not."""


class CheckpointError(GoldenStickError):
    """A checkpoint on disk is damaged, hostile, or not a checkpoint."""


class CalibrationError(GoldenStickError):
    """Calibration data is missing, too short, or makes the model compute something that is not finite."""


class OutputError(GoldenStickError):
    """The output folder cannot be used, or writing to it failed. Finished blocks stay finished."""
