"""When something is due: by steps, by epochs, by minutes."""

import time

from everydream.training.settings import CheckpointSettings
from everydream.types import Progress


class SaveCadence:
    """Tells after a step whether last.ckpt is due, and whether an export is."""

    def __init__(self, settings: CheckpointSettings) -> None:
        self._settings = settings
        self._saved_at = time.monotonic()

    def is_time(self) -> bool:
        """Tell whether the clock asks for a save."""
        minutes = self._settings.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def restart(self) -> None:
        """Start the clock anew: something was written."""
        self._saved_at = time.monotonic()

    def due(self, progress: Progress, epoch_ended: bool, is_time: bool = False) -> tuple[bool, bool]:
        """Return (write last.ckpt, write an export) after a step; `is_time`: what the main process's clock says."""
        s = self._settings
        by_steps = s.every_steps is not None and progress.step % s.every_steps == 0
        by_epoch = s.every_epochs is not None and epoch_ended and progress.epoch % s.every_epochs == 0
        export = by_steps or is_time or (by_epoch and progress.epoch >= s.from_epoch)
        return export or by_epoch, export
