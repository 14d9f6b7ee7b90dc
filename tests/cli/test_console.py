"""Plain lines where there is no terminal, bars where there is one; nothing of it can stop the work."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from mergekit3d_cli.console import PlainReporter, TerminalReporter, duration, reporter_for, show


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log():
    return io.StringIO()


def test_messages_and_warnings_are_lines(log):
    """Warnings say that they are."""
    reporter = PlainReporter(log)
    reporter.info("reading [t1]")
    reporter.warn("no seal")

    assert "reading [t1]\nwarning: no seal\n" == log.getvalue()


def test_quiet_drops_all_but_warnings(log, clock):
    """Messages and progress vanish."""
    reporter = PlainReporter(log, quiet=True, clock=clock)
    reporter.info("reading")
    with reporter.task("training", 2) as task:
        clock.now += 100
        task.advance()
    reporter.warn("no seal")

    assert "warning: no seal\n" == log.getvalue()


def test_short_task_leaves_one_line(log, clock):
    """However many steps it has."""
    with PlainReporter(log, clock=clock).task("fusing", 1000) as task:
        for _ in range(1000):
            clock.now += 0.003
            task.advance()

    assert "fusing: done in 3.0 s\n" == log.getvalue()


def test_lines_come_at_tenths_never_less_than_10_s_apart(log, clock):
    """100 steps of 0.5 s: a line at 20, 40, 60, 80 and 100 %, with the live figure."""
    with PlainReporter(log, clock=clock).task("training", 100) as task:
        for step in range(100):
            clock.now += 0.5
            task.advance(message=f"loss {1 - step / 100:.2f}")

    assert [
        "training: 20 % (20 of 100), 10 s, loss 0.81",
        "training: 40 % (40 of 100), 20 s, loss 0.61",
        "training: 60 % (60 of 100), 30 s, loss 0.41",
        "training: 80 % (80 of 100), 40 s, loss 0.21",
        "training: 100 % (100 of 100), 50 s, loss 0.01",
        "training: done in 50 s, loss 0.01",
    ] == log.getvalue().splitlines()


def test_slow_task_gives_a_sign_of_life_every_minute(log, clock):
    """Steps of 30 s of a task without a known end: a line each minute, however far the next tenth is."""
    with PlainReporter(log, clock=clock).task("reading", None) as task:
        for _ in range(4):
            clock.now += 30
            task.advance()

    assert ["reading: 2 done, 1 min 0 s", "reading: 4 done, 2 min 0 s", "reading: done in 2 min 0 s"] == log.getvalue().splitlines()


def test_task_inside_another_ends_silently_unless_it_was_long(log, clock):
    """A training run of 500 epochs leaves no 500 lines."""
    reporter = PlainReporter(log, clock=clock)
    with reporter.task("training", 2) as outer:
        for _ in range(2):
            with reporter.task("epoch", 1) as inner:
                clock.now += 2
                inner.advance()
            outer.advance()

    assert "training: done in 4.0 s\n" == log.getvalue()


def test_failed_task_is_not_called_done(log):
    """The error is told by someone else."""
    with pytest.raises(KeyError), PlainReporter(log).task("training", 2):
        raise KeyError

    assert not log.getvalue()


def test_log_that_cannot_be_written_does_not_stop_the_work():
    """A full disk behind the log costs the lines, not the run."""

    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    reporter = PlainReporter(Full())
    reporter.info("reading")
    with reporter.task("training", 1) as task:
        task.advance()


def test_stderr_without_a_terminal_gets_plain_lines(monkeypatch, log):
    """Also a terminal that cannot move its cursor, and --quiet on any."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", log)
    assert isinstance(reporter_for(quiet=False), PlainReporter)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(reporter_for(quiet=False), TerminalReporter)
    assert isinstance(reporter_for(quiet=True), PlainReporter)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(reporter_for(quiet=False), PlainReporter)


@pytest.fixture
def terminal(monkeypatch):
    """A reporter on a terminal of 120 columns that writes into a string."""
    from rich.console import Console

    reporter = TerminalReporter()
    reporter.console = Console(file=io.StringIO(), force_terminal=True, width=120, markup=False, highlight=False, no_color=True)
    return reporter


def test_bars_show_description_count_and_message(terminal):
    """Brackets in a description are text, not markup; a task inside another has its own bar."""
    with terminal.task("training [m1]", 4) as outer:
        with terminal.task("epoch", None) as inner:
            inner.advance(2)
        outer.advance(3, message="loss 0.25")
        terminal.progress.refresh()
        terminal.info("a line [above] the bars")
    said = terminal.console.file.getvalue()

    for text in ("training [m1]", "epoch", "3/4", "loss 0.25", "a line [above] the bars"):
        assert text in said
    assert re.search(r"training \[m1\]: done in \S+ s, loss 0\.25\n", said)
    assert "epoch: done" not in said


def test_bars_of_a_narrow_terminal_keep_their_counts(terminal):
    """The live figure gives way, not the bar; the line that the task leaves has all of it."""
    from rich.console import Console

    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    message = "loss 0.831, dice 0.198 (ET 0.12, TC 0.31, WT 0.44), at most 4 min left"
    with terminal.task("finetune", 500) as task:
        task.advance(143, message=message)
        narrow = Console(file=io.StringIO(), width=80, color_system=None)
        narrow.print(terminal.progress.get_renderable())
    (line,) = narrow.file.getvalue().splitlines()

    assert all(text in line for text in ("finetune", "━", "143/500", "0:00:00", "loss 0.831, dice"))
    assert line.rstrip().endswith("…")
    assert message in terminal.console.file.getvalue()


def test_bars_are_gone_after_an_error(terminal):
    """The terminal is left as it was, for the error to be told."""
    with pytest.raises(KeyError), terminal.task("training", 4):
        raise KeyError

    assert terminal.progress is None
    assert "done in" not in terminal.console.file.getvalue()


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [("0.0 s", 0), ("3.2 s", 3.21), ("10 s", 9.99), ("48 s", 48.4), ("1 min 0 s", 59.7), ("3 min 20 s", 200), ("2 h 5 min", 7500)],
)
def test_duration_reads_like_speech(expected, seconds):
    """Two units at most."""
    assert expected == duration(seconds)


class Answer:
    """A result with lines."""

    def __init__(self, lines, content):
        self._lines, self._content = lines, content

    def lines(self):
        return self._lines

    def as_json(self):
        return self._content


def test_show_prints_the_lines_of_a_result(capsys):
    """For people."""
    show(Answer(["a", "b"], {}), as_json=False)

    assert "a\nb\n" == capsys.readouterr().out


def test_show_fits_the_lines_of_a_result_to_the_terminal(monkeypatch):
    """Where the result can be fitted, and stdout is a terminal; into a file all of it goes."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Wide(Answer):
        def fitted(self, width):
            return [line[:width] for line in self.lines()]

    monkeypatch.setenv("COLUMNS", "30")
    for stream, expected in ((Terminal(), "x" * 30 + "\n"), (io.StringIO(), "x" * 99 + "\n")):
        monkeypatch.setattr("sys.stdout", stream)
        show(Wide(["x" * 99], {}), as_json=False)
        assert expected == stream.getvalue()


def test_show_prints_one_line_of_json_without_nan(capsys):
    """NaN, Inf and tuples become what JSON has, at any depth; letters are escaped, so that any stdout takes them."""
    show(Answer([], {"a": [float("nan"), {"b": float("inf")}], "c": (1, True, None, "é")}), as_json=True)

    assert '{"a": [null, {"b": null}], "c": [1, true, null, "\\u00e9"]}\n' == capsys.readouterr().out


def test_show_prints_indented_json_where_a_result_has_no_words(capsys):
    """Nothing is hidden from people."""

    class Bare:
        def as_json(self):
            return {"out": Path("a.pt")}

    show(Bare(), as_json=False)

    assert '{\n  "out": "a.pt"\n}\n' == capsys.readouterr().out


def test_show_prints_rich_tables_wide_where_stdout_is_no_terminal(capsys):
    """A table redirected to a file is not squeezed into 80 columns."""

    class Table:
        def __rich__(self):
            return "x" * 120

    show(Table(), as_json=False)

    assert "x" * 120 + "\n" == capsys.readouterr().out


def test_show_prints_names_that_stdout_cannot_encode(monkeypatch):
    """File names may hold bytes that are no text; they are escaped."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show(Answer(["m\udcff é"], {}), as_json=False)

    assert b"m\\udcff \\xe9\n" == raw.getvalue()


def test_names_cannot_command_the_terminal(capsys, log, terminal):
    """Escape sequences of a file name are spelt out, in results and in messages."""
    show(Answer(["a\x1b[2Jb: 3 tensors\nand more"], {}), as_json=False)
    PlainReporter(log, quiet=False).warn("a\x1b[2Jb")
    terminal.warn("c\x1b[2Jd")

    assert "a\\x1b[2Jb: 3 tensors\nand more\n" == capsys.readouterr().out
    assert "warning: a\\x1b[2Jb\n" == log.getvalue()
    assert "warning: c\\x1b[2Jd" in terminal.console.file.getvalue()
