"""Steps are repeated where what decides them, or what they wrote, has changed; never else."""

from __future__ import annotations

import json
import os

import pytest

from mergekit3d.datasets.subject import Subject
from mergekit3d.steps import FOLDER, Step, StepOutcome, carry_out, files_identity, subjects_identity


class Work:
    """Two steps, the second of which reads what the first wrote; counts what is done."""

    def __init__(self, folder):
        self.folder, self.done, self.told, self.setting = folder, [], [], 1

    def steps(self):
        first, second = self.folder / "first", self.folder / "second"
        return [
            Step("train m1", (first,), lambda: self.setting, lambda: self.write(first, f"weights {self.setting}")),
            Step("fisher m1", (second,), lambda: files_identity([first]), lambda: self.write(second, first.read_text())),
        ]

    def write(self, path, text):
        self.done.append(path.name)
        path.write_text(text)

    def run(self, *, force=False):
        self.done, self.told = [], []
        return carry_out(self.steps(), self.folder, force=force, tell=self.told.append)


@pytest.fixture
def work(tmp_path):
    """Work that has been done once."""
    made = Work(tmp_path)
    assert [StepOutcome("train m1", done=True), StepOutcome("fisher m1", done=True)] == made.run()
    return made


def test_first_run_tells_what_it_does(tmp_path):
    """With the number of each step."""
    made = Work(tmp_path)
    made.run()

    assert ["[1/2] train m1", "[2/2] fisher m1"] == made.told
    assert ["first", "second"] == made.done


def test_nothing_is_repeated(work):
    """And the run says so."""
    outcomes = work.run()

    assert [] == work.done
    assert [False, False] == [outcome.done for outcome in outcomes]
    assert ["[1/2] train m1: up to date", "[2/2] fisher m1: up to date"] == work.told


def test_changed_setting_repeats_the_step_and_what_follows(work):
    """The second one's input is another file then."""
    work.setting = 2
    work.run()

    assert ["first", "second"] == work.done
    assert "weights 2" == (work.folder / "second").read_text()


def test_missing_output_repeats_its_step_alone(work):
    """Where it comes out the same, what follows stays."""
    (work.folder / "first").unlink()
    work.run()

    assert ["first"] == work.done


def test_output_that_was_changed_is_made_again(work):
    """A damaged file is no result."""
    (work.folder / "second").write_text("damaged")
    work.run()

    assert ["second"] == work.done


def test_force_repeats_all(work):
    """Whatever is there."""
    work.run(force=True)

    assert ["first", "second"] == work.done


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"identity": 1}', "\xff"])
def test_damaged_stamp_repeats_its_step(work, content):
    """It is no proof of anything, and no traceback either."""
    for stamp in (work.folder / FOLDER).iterdir():
        stamp.write_text(content, encoding="latin-1")
    work.run()

    assert ["first", "second"] == work.done


def test_failed_step_is_repeated(work):
    """An error in the middle leaves no stamp, and earlier steps stay done."""

    def fail():
        raise KeyError

    steps = work.steps()
    work.setting = 2
    broken = Step(steps[1].name, steps[1].outputs, steps[1].identity, fail)
    with pytest.raises(KeyError):
        carry_out([steps[0], broken], work.folder, force=False, tell=work.told.append)
    work.run()

    assert ["second"] == work.done


def test_identity_is_asked_for_when_its_turn_comes(tmp_path):
    """Not before: the inputs of a step are made by earlier ones."""
    seen = []
    path = tmp_path / "first"
    steps = [
        Step("a", (path,), lambda: 0, lambda: path.write_text("made")),
        Step("b", (), lambda: seen.append(path.exists()), lambda: None),
    ]
    carry_out(steps, tmp_path, force=False, tell=lambda _: None)

    assert [True] == seen


def test_stamps_hold_no_paths(work):
    """Digests only."""
    for stamp in (work.folder / FOLDER).iterdir():
        assert str(work.folder) not in stamp.read_text()


def test_identity_of_files(tmp_path):
    """By content; None for one that is not there."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("a")
    first, second, missing = files_identity([tmp_path / "a", tmp_path / "b", tmp_path / "c"])

    assert first == second
    assert missing is None


def test_identity_of_subjects(tmp_path):
    """By names, sizes and times of their files, wherever the folder stands."""
    for name in ("t1", "label"):
        (tmp_path / name).write_text(name)
    subject = Subject("a", {"t1": tmp_path / "t1"}, tmp_path / "label")
    before = subjects_identity([subject])

    assert before == subjects_identity([subject])
    assert before != subjects_identity([Subject("b", subject.images, subject.label)])
    assert before != subjects_identity([Subject("a", subject.images, None)])
    (tmp_path / "t1").write_text("other")
    assert before != subjects_identity([subject])


@pytest.fixture
def trained(tmp_path):
    """A step that was done on two subjects: what to run again, and where their images are."""
    images = [tmp_path / f"{name}.nii" for name in "ab"]
    for image in images:
        image.write_text("old voxels")
    subjects = [Subject(image.stem, {"t1": image}, None) for image in images]
    done = []

    def train():
        done.append("train")
        (tmp_path / "best").write_text("weights")

    step = Step("train", (tmp_path / "best",), lambda: subjects_identity(subjects), train)

    def run():
        done.clear()
        carry_out([step], tmp_path, force=False, tell=lambda _: None)
        return list(done)

    assert ["train"] == run()
    return run, images


def in_place_of(path, content, *, by_rename):
    """Other content of the same size and time, as an editor that restores times, or rsync, leaves it."""
    status = path.stat()
    if by_rename:
        path.unlink()
    path.write_text(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (status.st_size, status.st_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.parametrize("by_rename", [False, True])
def test_edit_that_keeps_size_and_time_repeats_the_step(trained, by_rename):
    """The time of the last change of any kind cannot be set, and tells it; once done anew, the step is up to date."""
    run, images = trained
    in_place_of(images[1], "new voxels", by_rename=by_rename)

    assert ["train"] == run()
    assert [] == run()


@pytest.mark.parametrize("by_rename", [False, True])
def test_same_content_written_again_is_up_to_date(trained, by_rename):
    """A copy of the data elsewhere, other permissions: what differs is hashed, and found to be the same."""
    run, images = trained
    in_place_of(images[0], "old voxels", by_rename=by_rename)
    images[1].chmod(0o600)

    assert [] == run()


def test_records_of_earlier_versions_still_hold(trained, tmp_path):
    """They know nothing of inodes: an upgrade repeats no study."""
    run, _ = trained
    (stamp,) = (tmp_path / FOLDER).glob("*.json")
    content = json.loads(stamp.read_text())
    del content["subjects"]
    stamp.write_text(json.dumps(content))

    assert [] == run()


def test_content_is_hashed_once_for_all_steps(trained, tmp_path, monkeypatch):
    """What another step has kept for the same files is taken over, also by another process."""
    _, images = trained
    monkeypatch.setattr("mergekit3d.steps._contents", {})
    monkeypatch.setattr("mergekit3d.steps._digest", lambda _: pytest.fail("hashed again"))
    subjects = [Subject(image.stem, {"t1": image}, None) for image in images]
    step = Step("fisher", (tmp_path / "best",), lambda: [subjects_identity(subjects)], lambda: None)

    assert [StepOutcome("fisher", done=True)] == carry_out([step], tmp_path, force=False, tell=lambda _: None)
