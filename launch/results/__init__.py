"""Results: from a run folder to numbers and pictures."""

from launch.results.run import SavedRun, open_run

__all__ = ["SavedRun", "open_run"]
