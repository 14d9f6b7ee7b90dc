"""The command ``adapt`` on real folders: what a recipe may ask of it, and what it refuses before any work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergekit3d.datasets import find_dataset
from mergekit3d.errors import InputError, MergeKit3DError, RecipeError
from mergekit3d.options import Options
from mergekit3d.verbs.adapt import adapt
from mergekit3d.verbs.finetune import finetune
from mergekit3d.verbs.fuse import fuse
from mergekit3d.verbs.plot import plot
from tests.builders import save, two_sources, write_recipe

RECIPE = """
version: 1
name: timm
data: {{hcp: {data}/hcp, brats: {data}/brats}}
sources: [{{name: m1, checkpoint: m1.safetensors}}, {{name: m2, checkpoint: m2.safetensors}}]
merge: {{method: timm}}
target:
  data: hcp
  modalities: [t1, t2]
  regions: {{csf: [24], thalamus: [10, 49], pallidum: [13, 52]}}
  split: {{train: 2, validation: 1, test: 1, seed: 0}}
adapt: {{epochs: 2, batch_size: 1}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_data):
    """HCP and BraTS folders that all of these tests read."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def project(tmp_path, data, one_thread):
    """Two sources of the target's task, with their Fisher diagonals, and a recipe."""
    two_sources(tmp_path)
    write_recipe(tmp_path, RECIPE.format(data=data), "timm.yaml")
    return tmp_path


def run(project, *overrides, **options):
    return adapt(project / "timm.yaml", overrides=overrides, options=Options(out=project / "out", **options))


def log_of(result):
    with Path(result.log).open() as file:
        return list(csv.DictReader(file))


def assert_fuse_agrees(project, result, *overrides):
    """The command ``fuse`` with the learned ratios gives the adapted network, bit for bit."""
    fused = fuse(project / "timm.yaml", overrides=overrides, options=Options(out=project / "out"))
    ours, theirs = load_file(result.checkpoint), load_file(fused.out)
    assert list(ours) == list(theirs)
    assert [] == [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]


def test_finetune_refuses_a_fusion_by_earlier_ratios(project):
    """Whoever adapts again has to fuse again; a start that is out of date is never taken silently."""
    result = run(project, "adapt.epochs=1")
    fuse(project / "timm.yaml", options=Options(out=project / "out"))
    ratios = json.loads(result.ratios.read_text())
    result.ratios.write_text(json.dumps({**ratios, "layers": {name: [0.25, 0.75] for name in ratios["layers"]}}))

    text = r"out of date: .*fused\.safetensors: wanted the ratios it was made by, found another ratios\.json now; run: mergekit3d fuse"
    with pytest.raises(InputError, match=text):
        finetune(project / "timm.yaml", options=Options(out=project / "out"))
    assert not (project / "out" / "finetune" / "log.csv").exists()

    fuse(project / "timm.yaml", options=Options(out=project / "out", force=True))
    assert 1 == finetune(project / "timm.yaml", overrides=["finetune.epochs=1"], options=Options(out=project / "out")).epochs


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("model", 1),
        ("tensor", None),
        ("kernel", None),
        ('{encoder: "encoder.*", rest: ["decoder.*", "*"]}', 2),
    ],
)
def test_granularities(project, granularity, groups):
    """One ratio a model, tensor, kernel or group by glob; fuse reads back what adapt wrote."""
    override = f"merge.granularity={granularity}"
    result = run(project, override)
    ratios = json.loads(result.ratios.read_text())

    if groups is not None:
        assert groups == len(ratios["layers"])
    if granularity.startswith("{"):
        assert {"encoder": ["encoder.*"], "rest": ["decoder.*", "*"]} == ratios["granularity"]
        assert ["encoder", "rest"] == list(ratios["layers"])
    assert result.path.read_bytes().startswith(b"\x89PNG")
    assert_fuse_agrees(project, result, override)


def test_groups_of_another_recipe_are_refused(project):
    """The globs count, not the names of the groups alone."""
    run(project, 'merge.granularity={encoder: "encoder.*", rest: "*"}')

    with pytest.raises(MergeKit3DError, match="another granularity"):
        fuse(
            project / "timm.yaml", overrides=['merge.granularity={encoder: "encoder.0.*", rest: "*"}'], options=Options(out=project / "out")
        )


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ("{m1: 1, m2: 3}", {"encoder": 0.75, "decoder": 0.75}),
        ('{"encoder.*": {m1: 1, m2: 4}, "*": {m1: 3, m2: 1}}', {"encoder": 0.8, "decoder": 0.25}),
        ("start.json", {"encoder": 0.9, "decoder": 0.6}),
    ],
)
def test_initial_ratios(project, ratios, expected):
    """By source, by glob, or from a file; a rate of next to nothing leaves them there."""
    run(project)
    first = json.loads((project / "out/adapt/ratios.json").read_text())
    rows = {layer: [1 - expected["encoder"], expected["encoder"]] for layer in first["layers"] if layer.startswith("encoder")}
    rows |= {layer: [1 - expected["decoder"], expected["decoder"]] for layer in first["layers"] if not layer.startswith("encoder")}
    (project / "out/start.json").write_text(json.dumps({**first, "layers": rows}))
    result = run(project, f"adapt.ratios={ratios}", "adapt.ratio_learning_rate=1e-9", force=True)

    for layer, row in result.layers.items():
        assert expected["encoder" if layer.startswith("encoder") else "decoder"] == pytest.approx(row[1], abs=1e-5)


def test_penalty_is_logged_and_holds_ratios_together(project):
    """A strong one keeps them nearer to uniform than none."""
    free = run(project, "adapt.ratio_learning_rate=0.5")
    held = run(project, "adapt.ratio_learning_rate=0.5", "adapt.regularise={by: entropy, strength: 1000}", force=True)

    def apart(result):
        return float(np.mean([abs(row[0] - 0.5) for row in result.layers.values()]))

    assert apart(held) < apart(free)
    assert all(float(row["ratio_penalty"]) >= 0 for row in log_of(held))


def test_entropy_alone_learns_ratios_from_scans_without_labels(project, data):
    """Delta alone moves: the private tensors stay those of the source; no label map of a training subject is read."""
    for path in (data / "hcp").glob("*/T1w/aparc+aseg.nii.gz"):
        link = project / "hcp" / path.relative_to(data / "hcp")
        link.parent.mkdir(parents=True)
        for image in path.parent.glob("T?w_*"):
            (link.parent / image.name).symlink_to(image)
    entropy = ("data.hcp=hcp", "adapt.objective=entropy", "adapt.private=m2", "target.split.validation=0", "adapt.patch_size=[8, 8, 8]")
    result = run(project, *entropy)
    adapted, source = load_file(result.checkpoint), load_file(project / "m2.safetensors")
    private = [name for name in adapted if ".norm." in name or name.startswith("segmentation")]

    assert len(private) > 10
    assert [] == [name for name in private if adapted[name].tobytes() != source[name].tobytes()]
    assert any(abs(row[0] - 0.5) > 0.01 for row in result.layers.values())
    assert_fuse_agrees(project, result, *entropy)


def test_mix_with_scans_of_their_own(project):
    """Labelled subjects and unlabelled ones take turns; both terms count, and the private tensors are trained."""
    mixed = log_of(run(project, "adapt.objective={supervised: 1, entropy: 0.5}", "adapt.unlabelled=hcp"))
    plain = log_of(run(project, force=True))

    assert float(mixed[0]["train_loss"]) > float(plain[0]["train_loss"])
    assert mixed[0]["step"] == plain[0]["step"]


def test_scans_without_labels_are_of_any_layout(project, data):
    """What ids their label maps could hold does not matter: they are not read."""
    subjects = find_dataset(data / "hcp").subjects[:2]
    entries = [{"image": [str(path) for path in subject.images.values()]} for subject in subjects]
    (project / "scans.json").write_text(json.dumps({"labels": {"0": "background", "1": "other"}, "testing": entries}))
    scans = f"adapt.unlabelled={project / 'scans.json:test'}"
    result = run(project, "adapt.objective={supervised: 1, entropy: 0.5}", scans, "target.layout=hcp")
    assert 1 <= len(log_of(result))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["adapt.objective=entropy"], "wanted private tensors of a source"),
        (
            ["adapt.objective=entropy", "adapt.private=m1", "target.data=brats", "target.modalities=null", "target.regions=brats"],
            "is expanded",
        ),
        (["adapt.unlabelled=hcp"], "of no use to this objective"),
        (["adapt.objective={supervised: 0}"], "weight above 0"),
        (["adapt.ratios={m1: 0, m2: 1}"], "cannot start from these ratios: adapt.ratios"),
        (["adapt.ratios={m1: 1, m3: 1}"], "adapt.ratios"),
        (["adapt.objective=entropie"], "give supervised, entropy"),
        (["merge.method=linear", "merge.granularity=model", "merge.method=slerp"], "cannot be learned: merge.method"),
        (['merge.granularity={encoder: "encoder.*"}'], "fused tensors are in no group"),
        (['merge.granularity={encoder: "encodr.*", rest: "*"}'], "names no fused tensor"),
        (["adapt.regularise={by: entropie, strength: 1}"], "adapt.regularise"),
    ],
)
def test_refused_before_any_work(project, overrides, text):
    """One clear error, and nothing is written."""
    with pytest.raises(MergeKit3DError, match=text.replace("(", r"\(")):
        run(project, *overrides)
    assert not list((project / "out").glob("adapt/*.*"))


def test_training_subject_without_labels_needs_the_entropy(project, data):
    """The supervised objective says which subject."""
    folder = project / "hcp"
    for path in (data / "hcp").glob("*/T1w"):
        (folder / path.parent.name).mkdir(parents=True)
        (folder / path.parent.name / "T1w").mkdir()
        for file in path.iterdir():
            if not (path.parent.name.endswith("3") and file.name.startswith("aparc")):
                (folder / path.parent.name / "T1w" / file.name).symlink_to(file)

    with pytest.raises(MergeKit3DError, match=r"no label map: subject 4"):
        run(project, "data.hcp=hcp")
    with pytest.raises(RecipeError, match="private tensors of a source"):
        run(project, "data.hcp=hcp", "adapt.objective=entropy")


def test_bfloat16_learns_what_float32_learns(project):
    """Under autocast the weights that follow delta stay float32: the ratios move the same way."""
    paths = [run(project, precision=precision, force=True).layers for precision in ("fp32", "bf16")]

    single, brief = (np.array(list(layers.values())) for layers in paths)
    assert np.abs(single - 0.5).max() > 0.01
    np.testing.assert_allclose(single, brief, atol=0.03)


def test_accumulated_batches_make_one_step(project):
    """Two batches of one subject give the ratios of one batch of two, without dropout."""
    common = (
        "architecture={name: isensee2017, base_filters: 2, depth: 3, segmentation_levels: 2, dropout: 0.0}",
        "adapt.patch_size=[8, 8, 8]",
    )
    together = run(project, *common, "adapt.batch_size=2").layers
    apart = run(project, *common, "adapt.accumulate=2", force=True).layers

    np.testing.assert_allclose(np.array(list(together.values())), np.array(list(apart.values())), atol=1e-5)


def test_plot_draws_the_path(project):
    """From the log and the ratios beside it; of no other file."""
    result = run(project)

    assert "path" == plot(result.log, path=True, out=project / "p.svg").kind
    with pytest.raises(MergeKit3DError, match="drawn from one log"):
        plot(result.ratios, path=True, out=project / "q.svg")
    result.ratios.unlink()
    with pytest.raises(MergeKit3DError, match="sources are not known"):
        plot(result.log, path=True, out=project / "q.svg")


def test_kernels_of_a_transposed_convolution_are_refused(project):
    """Its first axis is the inputs'; the message says what to set."""
    states = {"up.weight": np.ones((4, 3, 2, 2, 2), np.float32), "up.bias": np.ones(3, np.float32)}
    for name in ("a", "b"):
        save(project / f"{name}.safetensors", states)
    recipe = write_recipe(
        project,
        "version: 1\nsources: [{name: a, checkpoint: a.safetensors}, {name: b, checkpoint: b.safetensors}]\n"
        "partitions: {private: []}\nmerge: {method: mean-imm, granularity: kernel}\n",
        "kernel.yaml",
    )
    with pytest.raises(RecipeError, match="a layer has no ratio a kernel"):
        fuse(recipe)
