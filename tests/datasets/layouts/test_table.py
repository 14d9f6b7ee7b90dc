import pytest

from mergekit3d.datasets import find_dataset, select
from mergekit3d.datasets.layouts.table import write
from mergekit3d.datasets.vocabulary import BRATS, SMALL
from mergekit3d.errors import InputError, Problems

HEADER = "Subject,t1,T1Gd,Label,split,fold,age\n"
ROWS = "a,a/t1.nii.gz,a/t1ce.nii.gz,a/seg.nii.gz,training,0,50\n\nb,b/t1.nii.gz,./b/t1ce.nii.gz,,test,,\n"


@pytest.fixture
def files(tmp_path, touch):
    """Two subjects, one of them without a label map."""
    return touch(tmp_path, "a/t1.nii.gz", "a/t1ce.nii.gz", "a/seg.nii.gz", "b/t1.nii.gz", "b/t1ce.nii.gz")


def listed(folder, text, name="list.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(("name", "delimiter"), [("list.csv", ","), ("list.tsv", "\t"), ("list.CSV", ";")])
def test_subjects_of_a_table(files, name, delimiter):
    """Paths start at its folder; blank lines and columns that are no images do not matter; a label may be missing."""
    dataset = find_dataset(listed(files, (HEADER + ROWS).replace(",", delimiter), name))
    first, second = dataset.subjects

    assert ("csv", files, ["a", "b"]) == (dataset.layout, dataset.root, [first.name, second.name])
    assert {"t1": files / "a/t1.nii.gz", "t1ce": files / "a/t1ce.nii.gz"} == first.images
    assert (files / "a/seg.nii.gz", "train", 0) == (first.label, first.part, first.fold)
    assert (None, "test", None) == (second.label, second.part, second.fold)


def test_paths_may_lead_anywhere(files):
    """As those of recipes: from the list's folder, upwards, or absolute."""
    (files / "lists").mkdir()
    path = listed(files / "lists", f"subject,t1\na,../a/t1.nii.gz\nb,{files / 'b/t1.nii.gz'}\n")

    assert ["a", "b"] == [subject.name for subject in select(find_dataset(path), ["t1"], need_labels=False)]


def test_every_problem_is_told_by_its_line(files):
    """Empty cells, subjects that stand twice, files that are not there, words that are no part."""
    path = listed(files, HEADER + ROWS + "a,b/t1.nii.gz,c.nii.gz,,dev,x,\nd,,a/t1ce.nii.gz,,,,\n../e,e.nii,e.nii.gz,,,,\n")

    with pytest.raises(Problems) as caught:
        find_dataset(path)
    assert [
        f"unknown part in the list: {path}, line 5: wanted train, validation, test or unlabelled, found dev",
        f"no number of a fold in the list: {path}, line 5: wanted 0, 1 ..., found x",
        f"an empty cell in the list: {path}, line 6: found t1; fill it, or remove the line",
        f"no name for a subject: {path}, line 7: wanted one that can name a file, found ../e",
        f"no such file: {path}, line 5: found c.nii.gz",
        f"no such file: {path}, line 7: found e.nii",
        f"no such file: {path}, line 7: found e.nii.gz",
        f"a subject stands twice in the list: {path}, line 5: found the same in line 2; remove one of them",
    ] == str(caught.value).splitlines()


def test_list_in_another_place_is_one_line(files):
    """Where no file is there, the paths start elsewhere; of some that are missing the first are told."""
    rows = "".join(f"s{number},s{number}/t1.nii.gz\n" for number in range(20))
    with pytest.raises(InputError, match=r"none of the files of the list is there: .*found 20 missing; put the list into the folder"):
        find_dataset(listed(files, "subject,t1\n" + rows))
    with pytest.raises(Problems, match=r"no such files: .*: found 12 others missing"):
        find_dataset(listed(files, "subject,t1\na,a/t1.nii.gz\n" + rows))


def test_many_problems_are_cut_short(files):
    """So that the first ones stay on the screen."""
    with pytest.raises(Problems) as caught:
        find_dataset(listed(files, "subject,t1\n" + "a,\n" * 50))
    *lines, last = str(caught.value).splitlines()
    assert (20, f"further problems in the list: {files / 'list.csv'}: found 30 others") == (len(lines), last)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subject,t1,flare\na,a/t1.nii.gz,a/t1ce.nii.gz\n", r"line 1: found flare; did you mean 'flair'\?"),
        ("subject,t1,T1w\na,a/t1.nii.gz,a/t1ce.nii.gz\n", "two columns are of one modality: .*, line 1: found t1 and t1w; remove one"),
        ("subject,age\na,5\n", "line 1: wanted a column a modality, such as t1, t1ce, t2, flair, found subject, age"),
        ("name,t1\na,a/t1.nii.gz\n", "wanted columns subject, found no column subject"),
        ("subject,t1\na,a/t1.nii.gz,b\n", "line 2: wanted 2 cells, found 3"),
        ("", "found an empty file"),
        ("subject,t1\n", "no subjects in the list"),
    ],
)
def test_tables_that_are_no_lists(files, text, said):
    """What is wrong with them, and where."""
    with pytest.raises(InputError, match=said):
        find_dataset(listed(files, text))


@pytest.mark.parametrize(
    ("names", "vocabulary"), [(("BraTS2021_00000", "BraTS20_Training_001"), BRATS), (("BraTS2021_00000", "b"), SMALL), (("a", "b"), SMALL)]
)
def test_names_may_tell_the_year_of_brats(files, names, vocabulary):
    """Where all do; else the regions of the task have to."""
    path = listed(files, f"subject,t1\n{names[0]},a/t1.nii.gz\n{names[1]},b/t1.nii.gz\n")
    assert vocabulary == find_dataset(path).vocabulary


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_written_list_is_the_same(files, name):
    """With paths below its folder, and without columns that no subject fills."""
    path = listed(files, (HEADER + ROWS).replace(",", "\t" if name.endswith("tsv") else ","), name)
    before = find_dataset(path)
    path.write_text(write(before, path))

    assert before == find_dataset(path)
    assert ["subject", "t1", "t1ce", "label", "split", "fold"] == path.read_text().splitlines()[0].replace("\t", ",").split(",")
