import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit3d.checkpoints.metadata import TaskSpec
from mergekit3d.datasets.labels import OUTPUT_SETS, check_outputs, decode, encode, output_set
from mergekit3d.errors import RecipeError, UsageError


def task(outputs, *, exclusive=False):
    return TaskSpec(modalities=("t1",), outputs=outputs, exclusive=exclusive)


def column(values, dtype=np.int32):
    return np.array(values, dtype=dtype).reshape(-1, 1, 1)


def channels(*rows):
    return np.array(rows, dtype=np.float32).reshape(len(rows), -1, 1, 1)


BRATS = task(output_set("brats"))


def test_fourteen_classes():
    """Order, names and sizes of the paper's classes; ids are disjoint, and corpus callosum is white matter."""
    both = output_set("hcp-1-14")
    ids = [label for labels in both.values() for label in labels]

    assert [
        *("cerebellum-gm", "cerebral-gm", "thalamus", "amygdala", "caudate", "pallidum", "csf"),
        *("cerebellum-wm", "cerebral-wm", "hippocampus", "ventricles", "putamen", "ventral-dc", "brainstem"),
    ] == list(both)
    assert list(both) == [*output_set("hcp-1-7"), *output_set("hcp-8-14")]
    assert [2, 74, 4, 4, 2, 2, 1, 2, 12, 2, 7, 2, 2, 1] == [len(labels) for labels in both.values()]
    assert len(ids) == len(set(ids))
    assert {1000, 1003, 1005, 1035, 2000, 2035, 3, 42, 26, 58} <= set(both["cerebral-gm"])
    assert {1004, 2004, 2, 41, 77, 78, 79, 251, 255} <= set(both["cerebral-wm"])


def test_unknown_output_set():
    """A misspelt set is a usage error with the nearest name."""
    with pytest.raises(UsageError, match=r"unknown set of outputs 'hcp-1_7'; did you mean 'hcp-1-7'\?"):
        output_set("hcp-1_7")


def test_encode_regions():
    """Nested regions: every id sets the channels that name it; an id that none names sets none."""
    encoded = encode(column([0, 1, 2, 4, 3]), BRATS)

    assert np.uint8 == encoded.dtype
    assert [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]] == encoded[:, :, 0, 0].tolist()


def test_encode_classes():
    """Exclusive classes are numbered from 1; every id that no class names is background, large ones too."""
    encoded = encode(column([0, 8, 47, 24, 16, 14175]), task(output_set("hcp-1-7"), exclusive=True))

    assert np.uint8 == encoded.dtype
    assert [0, 1, 1, 7, 0, 0] == encoded.ravel().tolist()


def test_decode_nested_regions():
    """ET, TC, WT give 4; TC, WT give 1; WT gives 2; nothing gives 0; a region without those around it still gets its own id."""
    probabilities = channels(
        [0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.9],
        [0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.2],
        [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9],
    )

    assert [4, 1, 2, 0, 4, 1, 4] == decode(probabilities, BRATS).ravel().tolist()


def test_decode_disjoint_regions():
    """Where two tissues are both above 0.5, the more probable wins; each writes its first id; 0.5 itself is background."""
    tissues = task({"a": (8, 47), "b": (3,)})

    labels = decode(channels([0.9, 0.6, 0.5, 0.2], [0.6, 0.9, 0.5, 0.6]), tissues)

    assert np.int32 == labels.dtype
    assert [8, 3, 0, 3] == labels.ravel().tolist()


def test_decode_overlapping_regions():
    """An id that lies in exactly the predicted regions is written, also where neither holds the other."""
    overlapping = task({"a": (1, 2), "b": (2, 3)})

    assert [1, 2, 3] == decode(channels([0.6, 0.6, 0.1], [0.1, 0.9, 0.9]), overlapping).ravel().tolist()


def test_decode_classes():
    """Exclusive classes: the most probable channel, with the background as channel 0, as the first id of its class."""
    labels = decode(channels([0.5, 0.2, 0.3], [0.3, 0.5, 0.3], [0.2, 0.3, 0.4]), task({"a": (8, 47), "b": (3,)}, exclusive=True))

    assert [0, 8, 3] == labels.ravel().tolist()


@pytest.mark.parametrize("name", list(OUTPUT_SETS))
def test_decode_inverts_encode(name):
    """Encoding, decoding and encoding again changes nothing, for every id that some output names."""
    spec = task(output_set(name))
    labels = column([0, *sorted({label for ids in spec.outputs.values() for label in ids})])

    encoded = encode(labels, spec)

    assert encoded.tolist() == encode(decode(encoded.astype(np.float32), spec), spec).tolist()


@given(regions=st.lists(st.sets(st.integers(1, 6), min_size=1), min_size=1, max_size=5))
def test_decode_inverts_encode_for_any_regions(regions):
    """The same for whatever regions overlap or nest however."""
    spec = task({str(index): tuple(sorted(ids)) for index, ids in enumerate(regions)})

    encoded = encode(column(range(7)), spec)

    assert encoded.tolist() == encode(decode(encoded.astype(np.float32), spec), spec).tolist()


@pytest.mark.parametrize("count", [1, 8, 9, 17, 33, 63])
def test_many_regions(count):
    """Up to 63 regions each keep their label."""
    spec = task({str(label): (label,) for label in range(1, count + 1)})
    labels = column(range(count + 1))

    assert labels.tolist() == decode(encode(labels, spec).astype(np.float32), spec).tolist()


def test_decode_keeps_ids_of_single_classes():
    """Where each class has one id, the label map itself comes back."""
    spec = task({"necrosis": (1,), "edema": (2,), "enhancing": (4,)}, exclusive=True)
    labels = column([0, 1, 2, 4])
    probabilities = np.eye(4, dtype=np.float32)[:, encode(labels, spec)]

    assert labels.tolist() == decode(probabilities, spec).tolist()
    assert labels.tolist() == decode(encode(labels, BRATS).astype(np.float32), BRATS).tolist()


@pytest.mark.parametrize(
    ("outputs", "exclusive", "text"),
    [
        ({"a": ()}, False, r"an output needs label ids of 1 or more: a: found \[\]"),
        ({"a": (0, 1)}, False, r"an output needs label ids of 1 or more: a: found \[0, 1\]"),
        ({"a": (1, 2), "b": (2,)}, True, "two exclusive classes share a label: 2: found a and b; use regions"),
        ({str(index): (index + 1,) for index in range(64)}, False, "too many outputs: wanted at most 63, found 64"),
    ],
)
def test_outputs_that_make_no_sense(outputs, exclusive, text):
    """Background as an output, an empty one, or classes that share an id are recipe errors."""
    with pytest.raises(RecipeError, match=text):
        check_outputs(task(outputs, exclusive=exclusive))
    check_outputs(BRATS)
