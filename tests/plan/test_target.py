"""What a target's network puts out, and the subjects that train, validate and test it."""

from __future__ import annotations

import pytest

from mergekit3d.errors import InputError, MergeKit3DError, RecipeError
from mergekit3d.plan.target import has_test, open_cohort, task_of_target, with_split
from mergekit3d.recipe import load_recipe
from mergekit3d.recipe.models import SplitModel
from tests.builders import write_recipe


@pytest.fixture
def data(tmp_path):
    """Six HCP subjects, as far as names tell."""
    for number in range(6):
        folder = tmp_path / "hcp" / f"10{number}" / "T1w"
        folder.mkdir(parents=True)
        for name in ("T1w_acpc_dc_restore", "T2w_acpc_dc_restore", "aparc+aseg"):
            (folder / f"{name}.nii.gz").touch()
    return tmp_path


def loaded(folder, target):
    return load_recipe(write_recipe(folder, f"version: 1\ntarget: {{data: hcp, {target}}}"))


def task(folder, target):
    recipe = loaded(folder, target)
    return task_of_target(recipe, recipe.recipe.target)


def cohort(folder, target):
    recipe = loaded(folder, target)
    return open_cohort(recipe, recipe.recipe.target)


def test_task_of_regions(data):
    """In the order of the recipe, one number or several."""
    found = task(data, "modalities: [t2, T1w], regions: {b: 7, a: [4, 43]}, normalisation: rank, spacing_mm: [1, 1, 2]")

    assert (("t2", "t1"), {"b": (7,), "a": (4, 43)}) == (found.modalities, found.outputs)
    assert ["b", "a"] == list(found.outputs)
    assert (False, "rank", (1.0, 1.0, 2.0)) == (found.exclusive, found.normalisation, found.spacing_mm)


def test_task_of_labels_is_exclusive(data):
    """A softmax with background."""
    assert 3 == task(data, "modalities: [t1], labels: {a: 1, b: 2}").channels


def test_shipped_set_by_name(data):
    """Seven of the paper's classes."""
    assert 7 == task(data, "modalities: [t1], regions: hcp-1-7").channels


def test_modalities_left_out_are_those_of_the_data(data):
    """In the usual order."""
    assert ("t1", "t2") == task(data, "regions: hcp-1-7").modalities


def test_modalities_that_differ_must_be_named(data):
    """No guess is made."""
    (data / "hcp" / "100" / "T1w" / "T2w_acpc_dc_restore.nii.gz").unlink()
    with pytest.raises(RecipeError, match="the subjects have different modalities: target; list those to use under target.modalities"):
        task(data, "regions: hcp-1-7")


@pytest.mark.parametrize(
    ("told", "target"),
    [
        ("the target has no outputs: target: wanted regions or labels; for example regions: brats", "modalities: [t1]"),
        ("a modality stands twice: target.modalities: found t1, t1", "modalities: [t1, T1w], regions: brats"),
        ("unknown set of outputs 'hcp-1-8'", "modalities: [t1], regions: hcp-1-8"),
        ("an output needs label ids of 1 or more: a: found [0]", "modalities: [t1], regions: {a: 0}"),
        ("two exclusive classes share a label: 2: found a and b; use regions", "modalities: [t1], labels: {a: [1, 2], b: 2}"),
    ],
)
def test_tasks_that_cannot_be(data, told, target):
    """Exit code 2, one line."""
    with pytest.raises(MergeKit3DError) as caught:
        task(data, target)
    assert str(caught.value).startswith(told)
    assert 2 == caught.value.exit_code


def test_split_by_numbers(data):
    """No subject is in two parts; subjects come with the task's modalities, in its order."""
    found = cohort(data, "modalities: [t2, t1], regions: hcp-1-7, split: {train: 3, validation: 1, test: 2, seed: 1}")
    parts = [found.subjects(part) for part in ("train", "validation", "test")]

    assert [3, 1, 2] == [len(part) for part in parts]
    assert 6 == len({subject.name for part in parts for subject in part})
    assert ["t2", "t1"] == list(parts[0][0].images)
    assert sorted(found.split.train) == [subject.name for subject in parts[0]]


def test_skipped_subjects_are_another_models(data):
    """M2 sees none that M1 trained on; the test subjects stay."""
    first = cohort(data, "modalities: [t1], regions: hcp-1-7, split: {train: 2, test: 2}").split
    second = cohort(data, "modalities: [t1], regions: hcp-1-7, split: {skip: 2, train: 2, test: 2}").split

    assert set() == set(first.train) & set(second.train)
    assert first.test == second.test


def test_split_by_a_file(data):
    """From the recipe's folder, whole or by part."""
    (data / "split.json").write_text('{"train": ["101"], "test": ["102"]}')
    (data / "names.txt").write_text("103\n")
    whole = cohort(data, "modalities: [t1], regions: hcp-1-7, split: split.json").split
    part = cohort(data, "modalities: [t1], regions: hcp-1-7, split: {train: 2, test: names.txt}").split

    assert (("101",), (), ("102",)) == (whole.train, whole.validation, whole.test)
    assert (("103",), 2) == (part.test, len(part.train))


@pytest.fixture
def listed(data):
    """A list of the six with their parts and folds; the last one has no labels."""
    parts = ["train,0", "train,1", "train,1", "validation,", "test,", "test,"]
    rows = [
        f"s{number},hcp/10{number}/T1w/T1w_acpc_dc_restore.nii.gz,{'' if number == 5 else f'hcp/10{number}/T1w/aparc+aseg.nii.gz'},{part}"
        for number, part in enumerate(parts)
    ]
    (data / "list.csv").write_text("\n".join(["subject,t1,label,split,fold", *rows]))
    return data


def of_list(folder, rest="", part=""):
    recipe = load_recipe(write_recipe(folder, f"version: 1\ntarget: {{data: 'list.csv{part}', regions: hcp-1-7{rest}}}"))
    return open_cohort(recipe, recipe.recipe.target), has_test(recipe, recipe.recipe.target)


def test_split_of_a_list(listed):
    """Its own where the recipe has none; what has no labels tests nothing."""
    found, tests = of_list(listed)

    assert (("s0", "s1", "s2"), ("s3",), ("s4",), True) == (found.split.train, found.split.validation, found.split.test, tests)
    assert (("s0", "s1", "s2"), (), ()) == tuple(vars(of_list(listed, part=":train")[0].split).values())
    assert (False, False) == (of_list(listed, part=":train")[1], of_list(listed, ", split: {train: 2}", ":train")[1])


def test_split_by_folders(data):
    """Of train, validation and test, each with subjects in the same layout; what is unlabelled is in no part."""
    for number, part in enumerate(("train", "train", "validation", "test", "unlabelled")):
        (data / "parts" / part).mkdir(parents=True, exist_ok=True)
        (data / "hcp" / f"10{number}").rename(data / "parts" / part / f"10{number}")
    (data / "parts/unlabelled/104/T1w/aparc+aseg.nii.gz").unlink()
    recipe = load_recipe(write_recipe(data, "version: 1\ntarget: {data: parts, regions: hcp-1-7}"))
    assert (("100", "101"), ("102",), ("103",)) == tuple(vars(open_cohort(recipe, recipe.recipe.target).split).values())


def test_fold_of_a_list(listed):
    """One fold validates, beside what validates anyway."""
    assert (("s0",), ("s1", "s2", "s3"), ("s4",)) == tuple(vars(of_list(listed, ", split: {fold: 1}")[0].split).values())
    with pytest.raises(InputError, match=r"no subject has this fold: target.split.fold: wanted 2, found 0, 1"):
        of_list(listed, ", split: {fold: 2}")
    with pytest.raises(RecipeError, match="give a fold or numbers, not both"):
        of_list(listed, ", split: {fold: 1, train: 2}")


def test_split_of_a_recipe_beats_that_of_a_list(listed):
    """All of its subjects are dealt out then, and all need labels."""
    assert 3 == len(of_list(listed, ", split: {train: 2, test: 1}", ":train")[0].dataset.subjects)
    with pytest.raises(InputError, match="a subject has no label map: subject 6; add it, or take a part of the list that has them, such"):
        of_list(listed, ", split: {train: 2, test: 1}")


def test_too_few_subjects(data):
    """What was asked for, and what there is."""
    with pytest.raises(RecipeError, match="too few subjects for the split: wanted 5 train . 2 test = 7, found 6"):
        cohort(data, "modalities: [t1], regions: hcp-1-7, split: {train: 5, test: 2}")


def test_subject_without_a_modality_or_labels(data):
    """The subject's number, or the modality that none has."""
    with pytest.raises(InputError, match="no subject has the modality: flair"):
        cohort(data, "modalities: [flair], regions: hcp-1-7")
    (data / "hcp" / "104" / "T1w" / "aparc+aseg.nii.gz").unlink()
    with pytest.raises(InputError, match="a subject has no label map: subject 5"):
        cohort(data, "modalities: [t1], regions: hcp-1-7")


def test_recipe_without_a_target(data):
    """Says what it wants, and where."""
    path = write_recipe(data, "version: 1")
    with pytest.raises(RecipeError) as caught:
        open_cohort(load_recipe(path), None, key="sources.m1.target")
    assert f"the recipe has no target: {path}: wanted sources.m1.target with data, modalities and regions" == str(caught.value)


def test_target_with_another_split(data):
    """For the sizes of a study; the rest stays."""
    target = loaded(data, "regions: brats").recipe.target

    assert 4 == with_split(target, SplitModel(train=4)).split.train
    assert "brats" == with_split(target, SplitModel(train=4)).regions
