"""When something is due: by steps, by epochs, by minutes."""

import time

from everydream.training.settings import CheckpointSettings
from everydream.types import Progress


class SaveCadence:
    """Tells after each step whether last.ckpt is due, and whether an export is."""

    def __init__(self, settings: CheckpointSettings) -> None:
        self._settings = settings
        self._saved_at = time.monotonic()

    def due(self, progress: Progress, epoch_ended: bool) -> tuple[bool, bool]:
        """Return (write last.ckpt, write an export). The clock starts anew whenever something is due."""
        s = self._settings
        by_steps = s.every_steps is not None and progress.step % s.every_steps == 0
        by_epoch = s.every_epochs is not None and epoch_ended and progress.epoch % s.every_epochs == 0
        by_time = s.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * s.every_minutes
        export = by_steps or by_time or (by_epoch and progress.epoch >= s.from_epoch)
        last = export or by_epoch
        if last:
            self._saved_at = time.monotonic()
        return last, export
