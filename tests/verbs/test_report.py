"""`report`: one page on what any run left."""

from __future__ import annotations

import pytest

import mergekit3d
from mergekit3d.errors import InputError, LockedError, UsageError
from mergekit3d.storage.lock import output_lock

METRICS = "subject,region,dice,hd95\ns1,ET,0.5,3\ns1,WT,0.7,2\ns2,ET,0.6,nan\ns2,WT,0.8,1\n"


@pytest.fixture
def folder(tmp_path):
    """The output of an evaluation."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.csv").write_text(METRICS)
    return tmp_path / "evaluation"


def test_page_stands_in_the_folder(folder):
    """The function tells where it is and what is in it, also after importing the modules that make it."""
    result = mergekit3d.report(folder)

    assert folder / "report.html" == result.out
    assert ("Evaluation", ("evaluation", "provenance")) == (result.title, result.sections)
    assert result.size == result.out.stat().st_size
    assert [f"{result.out}: Evaluation; evaluation, provenance ({result.size / 1e3:.0f} kB)"] == result.lines()
    assert {
        "out": str(result.out),
        "title": "Evaluation",
        "sections": ["evaluation", "provenance"],
        "size": result.size,
    } == result.as_json()


def test_existing_page_is_kept_unless_forced(folder, tmp_path):
    """`force` replaces it, `out` writes elsewhere, and the page itself is no part of what is reported."""
    before = mergekit3d.report(folder).out.read_bytes()

    with pytest.raises(UsageError, match="the output exists already"):
        mergekit3d.report(folder)
    assert before == mergekit3d.report(folder, force=True).out.read_bytes()
    assert before == mergekit3d.report(folder, out=f"{tmp_path}/other/page.html").out.read_bytes()


@pytest.mark.parametrize("name", ["", "missing", "file"])
def test_nothing_to_report_is_one_line(tmp_path, name):
    """A folder without results, no folder, or a file; nothing is written."""
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="nothing to report"):
        mergekit3d.report(tmp_path / name)
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


def test_run_that_is_writing_is_left_alone(folder):
    """The page of a folder that another run holds is refused; elsewhere it can be written."""
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with output_lock(folder):
            held.set()
            done.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    try:
        with pytest.raises(LockedError):
            mergekit3d.report(folder)
        assert mergekit3d.report(folder, out=folder.parent / "page.html").out.exists()
    finally:
        done.set()
        other.join()
