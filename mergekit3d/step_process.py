"""One step of a recipe in a process of its own: ``python -m mergekit3d.step_process``, as `mergekit3d.parallel` starts it.

What to do comes pickled on standard input, which stays open for as long as the starter lives; what happens goes out on standard
output, one JSON object a line. Anything else that the work prints goes to standard error.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import IO, Any, Self

from mergekit3d.errors import MergeKit3DError
from mergekit3d.options import Options
from mergekit3d.recipe.load import LoadedRecipe


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Args:
        loaded: the recipe.
        options: with the device of this process.
        step: name of the step.
    """

    loaded: LoadedRecipe
    options: Options
    step: str


class Telling:
    """A reporter that hands all on to the starter.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def say(self, **content: Any) -> None:
        """One message; a starter that is gone misses it, and its end ends this process."""
        try:
            print(json.dumps(content), file=self.stream, flush=True)
        except OSError:
            return

    def info(self, message: str) -> None:
        """A line that says what happens now."""
        self.say(info=message)

    def warn(self, message: str) -> None:
        """A line that asks for attention."""
        self.say(warn=message)

    def task(self, description: str, total: float | None) -> _TellingTask:
        """A task whose progress is told."""
        return _TellingTask(self, description, total)


class _TellingTask:
    def __init__(self, telling: Telling, description: str, total: float | None) -> None:
        self.telling, self.description, self.total, self.done = telling, description, total, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, steps: float = 1, *, message: str = "") -> None:
        """Count `steps` as done."""
        self.done += steps
        share = self.done / self.total if self.total else None
        self.telling.say(task=self.description, share=share, message=message)


def main() -> int:
    """Carry out the step that standard input names; the exit code."""
    # A copy of standard output for the messages: libraries that print must not break their lines.
    telling = Telling(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    order = pickle.load(sys.stdin.buffer)  # noqa: S301  from the process that started this one
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    try:
        _carry_out(order, telling)
    except MergeKit3DError as error:
        telling.say(error=base64.b64encode(pickle.dumps(error)).decode())
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001  told by the starter, as an error of its own would be
        telling.say(failure=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        return 1
    return 0


def _carry_out(order: Order, telling: Telling) -> None:
    from mergekit3d.steps import carry_out
    from mergekit3d.study import Study

    study = Study(order.loaded, order.options, telling)
    step = next(step for step in study.steps() if step.name == order.step)
    carry_out([step], order.loaded.out, force=True, tell=lambda _: None)


def _end_with_the_starter() -> None:
    """Stop as by SIGTERM, which trainings save their state on, once the starter has gone without a word."""
    # Not by sys.stdin: Python aborts at its end while a thread holds that.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
