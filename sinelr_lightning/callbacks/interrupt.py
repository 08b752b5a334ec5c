"""Ctrl-C that stops a run between two steps, so that it goes on exactly where it stopped."""

import logging
import signal
import threading
from typing import Any

import lightning.pytorch as L

__all__ = ["StopBetweenSteps"]

log = logging.getLogger(__name__)


class StopBetweenSteps(L.Callback):
    """The first Ctrl-C ends the step (and the validation, if one runs), saves and stops; the second stops at once.

    Lightning's own handling breaks into the step, where weights, counters and data no longer belong together. Its
    handling of SIGTERM waits for the end of the step and tells all ranks; this hands Ctrl-C over to it.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._earlier: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take Ctrl-C over."""
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(signum: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.interrupted = True
            if trainer.is_global_zero:  # the other ranks hear of it before their next step
                log.info("stopping after this step (Ctrl-C again: at once)")
                trainer._signal_connector.received_sigterm = True

        self._earlier = signal.signal(signal.SIGINT, stop)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back."""
        self.interrupted = self.interrupted or isinstance(exception, KeyboardInterrupt)
        self._restore()

    def _restore(self) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)
            self._earlier = None
