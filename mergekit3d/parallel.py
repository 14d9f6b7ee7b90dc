"""Steps of a recipe side by side: each in a process of its own on one of several devices, as soon as its inputs are there."""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from mergekit3d.errors import Interrupted, MachineError, MergeKit3DError, Problems, UsageError
from mergekit3d.options import Options
from mergekit3d.progress import Reporter, Task
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.step_process import Order
from mergekit3d.steps import Step, StepOutcome, is_up_to_date
from mergekit3d.training.interruption import Interruption, catch_signals

LOOK_EVERY_S = 0.2
TOLD_OF_A_CRASH = 2000
"""Characters at the end of what a process that died wrote to standard error."""


def slots_for(options: Options, devices: Sequence[str], jobs: int) -> list[str]:
    """A device for every step that may run at once.

    Args:
        options: ``device`` counts where no devices are given; ``auto`` is every visible GPU where there are several.
        devices: by name; empty: see options.
        jobs: steps at once on each.

    Raises:
        UsageError: a device that is not there or stands twice, both kinds of choice at once, or no job.
    """
    from mergekit3d.training.devices import resolve_runtime

    if jobs < 1:
        raise UsageError("cannot share out the steps", where="--jobs", wanted="at least 1", found=jobs)
    if devices and options.device != "auto":
        raise UsageError("--device and --devices exclude each other", todo="give one of them")
    if len(set(devices)) < len(devices):
        raise UsageError("a device stands twice", where="--devices", found=",".join(devices), todo="--jobs runs several steps on each")
    for device in devices:
        resolve_runtime(device, options.precision)
    chosen = list(devices) or (_every_gpu() if options.device == "auto" else []) or [options.device]
    return chosen * jobs


def _every_gpu() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)] if count > 1 else []


@dataclass
class _Work:
    """A step under way in its process."""

    step: Step
    slot: int
    process: subprocess.Popen[bytes]
    crash: IO[bytes]
    began: float = field(default_factory=time.monotonic)
    state: str = ""
    error: Exception | None = None


@dataclass
class _Run:
    """All that a run knows while it goes on.

    Args:
        loaded: the recipe.
        options: of the run; every step gets its own device.
        steps: in the order of their inputs.
        slots: a device for each step at once.
        force: repeat all.
        reporter: where progress goes.
        interruption: the flag of a signal.
    """

    loaded: LoadedRecipe
    options: Options
    steps: Sequence[Step]
    slots: Sequence[str]
    force: bool
    reporter: Reporter
    interruption: Interruption
    done: dict[str, StepOutcome] = field(default_factory=dict)
    running: dict[str, _Work] = field(default_factory=dict)
    failed: list[Exception] = field(default_factory=list)
    messages: queue.Queue[tuple[_Work, dict[str, Any] | None]] = field(default_factory=queue.Queue)
    is_passed_on: bool = False

    def go(self) -> None:
        """Until all is done, or nothing runs any more after a failure or a signal."""
        with self.reporter.task("steps", len(self.steps)) as progress:
            while len(self.done) < len(self.steps):
                if not self.failed and self.interruption.signal_number is None:
                    self._start(progress)
                if not self.running:
                    return
                self._hear(progress)
                self._pass_signal_on()

    def _start(self, progress: Task) -> None:
        """Whatever can be: in order, so that a step goes before those that follow it in a sequential run."""
        waiting = [step for step in self.steps if step.name not in self.done and step.name not in self.running]
        for step in waiting:
            if any(maker not in self.done for maker in self._makers_of(step)):
                continue
            free = sorted(set(range(len(self.slots))) - {work.slot for work in self.running.values()})
            if not free:  # before the question below, which reads files, and would read them again at every look
                return
            number = f"[{self._number(step)}/{len(self.steps)}] {step.name}"
            if not self.force and is_up_to_date(step, self.loaded.out):
                self.reporter.info(f"{number}: up to date")
                self._end(step, progress, done=False)
                continue
            self.reporter.info(f"{number} on {self.slots[free[0]]}" if len(set(self.slots)) > 1 else number)
            self.running[step.name] = self._process(step, free[0])

    @cached_property
    def _makers(self) -> dict[Path, str]:
        """The step that writes each file, by absolute paths: one step may name a file from the root, another from where it runs."""
        return {path.absolute(): step.name for step in self.steps for path in step.outputs}

    def _makers_of(self, step: Step) -> set[str]:
        """Steps that write what a step reads."""
        return {self._makers[path.absolute()] for path in step.inputs if path.absolute() in self._makers}

    def _number(self, step: Step) -> int:
        return 1 + next(index for index, other in enumerate(self.steps) if other is step)

    def _end(self, step: Step, progress: Task, *, done: bool) -> None:
        self.done[step.name] = StepOutcome(step.name, done)
        progress.advance(1, message=self._state())

    def _process(self, step: Step, slot: int) -> _Work:
        device, environment = _own_device(self.slots[slot], len(self.slots))
        crash = tempfile.TemporaryFile()  # noqa: SIM115  closed with the work
        process = subprocess.Popen(
            # -P: else a random.py in the folder that the user stands in would come before Python's own.
            [sys.executable, "-P", "-m", "mergekit3d.step_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=crash,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            # Its own session: a Ctrl-C in the terminal comes once, by way of this process.
            start_new_session=True,
        )
        work = _Work(step, slot, process, crash)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(Order(self.loaded, replace(self.options, device=device), step.name)))
            process.stdin.flush()
        threading.Thread(target=self._listen, args=(work,), daemon=True).start()
        return work

    def _listen(self, work: _Work) -> None:
        assert work.process.stdout is not None
        for line in work.process.stdout:
            with suppress(ValueError):
                self.messages.put((work, json.loads(line)))
        self.messages.put((work, None))

    def _hear(self, progress: Task) -> None:
        """One message, if there is one soon."""
        try:
            work, content = self.messages.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            return
        if content is None:
            self._settle(work, progress)
        elif "error" in content:
            work.error = pickle.loads(base64.b64decode(content["error"]))  # noqa: S301  from a process that this one started
        elif "failure" in content:
            work.error = RuntimeError(f"{work.step.name}: {content['failure']}")
            work.error.add_note(content["traceback"])
        elif "warn" in content:
            self.reporter.warn(f"{work.step.name}: {content['warn']}")
        elif "info" in content:
            self.reporter.info(f"{work.step.name}: {content['info']}")
        else:
            work.state = "" if content["share"] is None else f" {content['share']:.0%}"
            progress.advance(0, message=self._state())

    def _state(self) -> str:
        return ", ".join(f"{work.step.name}{work.state}" for work in self.running.values())

    def _settle(self, work: _Work, progress: Task) -> None:
        """What became of a process that has ended."""
        code = work.process.wait()
        work.crash.seek(0)
        said = work.crash.read().decode(errors="replace")[-TOLD_OF_A_CRASH:]
        _close(work)
        del self.running[work.step.name]
        if code == 0 and work.error is None:
            self.reporter.info(f"{work.step.name}: done in {time.monotonic() - work.began:.0f} s")
            self._end(work.step, progress, done=True)
        elif self.interruption.signal_number is None:
            self.failed.append(work.error or _crash(work, code, said))
            others = f"; {len(self.running)} running steps go on to their end" if self.running else ""
            self.reporter.warn(f"{work.step.name} failed: {self.failed[-1]}{others}")

    def _pass_signal_on(self) -> None:
        number = self.interruption.signal_number
        if number is None or self.is_passed_on:
            return
        self.is_passed_on = True
        steps = "step to save its" if len(self.running) == 1 else "steps to save their"
        self.reporter.info(f"{signal.Signals(number).name}: waiting for {len(self.running)} {steps} state")
        for work in self.running.values():
            work.process.send_signal(number)

    def kill(self) -> None:
        """Leave no process behind, whatever ended the run."""
        for work in self.running.values():
            work.process.kill()
            work.process.wait()
            _close(work)


def carry_out_parallel(
    loaded: LoadedRecipe, steps: Sequence[Step], *, slots: Sequence[str], options: Options, reporter: Reporter
) -> list[StepOutcome]:
    """Carry out the steps that are out of date, several at once; each writes what it would alone.

    Args:
        loaded: the recipe, whose output folder this process holds.
        steps: in the order of their inputs.
        slots: of `slots_for`.
        options: ``force`` repeats all, ``resume`` goes on from snapshots.
        reporter: where progress goes.

    Returns:
        What became of each step, in their order.

    Raises:
        Interrupted: a signal came; the steps under way have saved what they can.
        MergeKit3DError: a step failed; those under way have ended, no other has begun.
    """
    with catch_signals() as interruption, ExitStack() as stack:
        run = _Run(loaded, options, steps, slots, options.force, reporter, interruption)
        stack.callback(run.kill)
        run.go()
    number = interruption.signal_number
    if number is not None and len(run.done) < len(steps):
        raise Interrupted(f"stopped by {signal.Signals(number).name}", signal_number=number, todo="run again with --resume to go on")
    _raise(run.failed)
    return [run.done[step.name] for step in steps]


def _raise(failed: Sequence[Exception]) -> None:
    known = [error for error in failed if isinstance(error, MergeKit3DError)]
    if len(failed) > len(known):
        raise next(error for error in failed if not isinstance(error, MergeKit3DError))
    if len(known) > 1:
        raise Problems(known)
    if known:
        raise known[0]


def _own_device(slot: str, slots: int) -> tuple[str, dict[str, str]]:
    """The device of a process, and the variables that leave it no other."""
    if slot.startswith("cuda:"):
        index = int(slot.removeprefix("cuda:"))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return "cuda", {"CUDA_VISIBLE_DEVICES": str(index) if visible is None else visible.split(",")[index].strip()}
    if slots > 1 and "OMP_NUM_THREADS" not in os.environ:
        from mergekit3d.preprocessing.pool import processors

        # Else every process takes all cores, and they wait for one another.
        return slot, {"OMP_NUM_THREADS": str(max(1, processors() // slots))}
    return slot, {}


def _crash(work: _Work, code: int, said: str) -> MachineError:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = [line for line in said.splitlines() if line.strip()]
    todo = "if the memory ran out, pass fewer --jobs" if code == -signal.SIGKILL else None
    return MachineError("the process of a step died", where=work.step.name, found=f"{how}{f': {lines[-1]}' if lines else ''}", todo=todo)


def _close(work: _Work) -> None:
    work.crash.close()
    for stream in (work.process.stdin, work.process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
