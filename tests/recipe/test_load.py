"""From a file to a checked recipe: paths, overrides, and every problem with its key and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit3d.errors import MergeKit3DError, Problems, RecipeError
from mergekit3d.recipe import load_recipe
from tests.builders import write_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
RECIPE = """
version: 1
name: mine
data: {hcp: /data/hcp}
architecture: {name: isensee2017, base_filters: 8}
sources:
  - {name: m1, checkpoint: m1.pt}
  - {name: m2, checkpoint: sub/m2.pt, fisher: other.safetensors}
merge: {method: timm, out: merged.pt}
target:
  data: brats/
  modalities: [t1, t2]
  regions: brats
  split: {train: 4, validation: 2, test: 2}
"""


def problems_of(tmp_path, text, **keywords):
    """The lines of what loading is answered with, without the path."""
    path = write_recipe(tmp_path, text)
    with pytest.raises(MergeKit3DError) as caught:
        load_recipe(path, **keywords)
    assert 2 == caught.value.exit_code
    return str(caught.value).replace(f"{path}", "r.yaml").splitlines()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    """Each of them, under its own name."""
    loaded = load_recipe(path)

    assert path.stem == loaded.name
    assert path.parent / path.stem == loaded.out


def test_shipped_recipes_are_those_of_the_issue():
    """m1, m2, imm, timm, transfer, demo, and the paper's experiment."""
    assert {"m1", "m2", "imm", "timm", "transfer", "demo", "timm2019"} <= {path.stem for path in SHIPPED}


def test_prepared_subjects_are_stored_in_the_output_folder(tmp_path):
    """Also for the arms of a study; a folder that recipes share starts at the recipe, and false stores none."""
    path = write_recipe(tmp_path, RECIPE)

    assert tmp_path / "mine/prepared" == load_recipe(path).prepared == load_recipe(path).changed(out=tmp_path / "arm").prepared
    assert tmp_path / "elsewhere/prepared" == load_recipe(path, out=tmp_path / "elsewhere").prepared
    assert tmp_path / "shared" == load_recipe(path, overrides=["cache=shared"]).prepared
    assert load_recipe(path, overrides=["cache=false"]).prepared is None


def test_paths_of_inputs_start_at_the_recipe(tmp_path):
    """Those of outputs at OUT, a folder of the recipe's name beside it."""
    loaded = load_recipe(write_recipe(tmp_path, RECIPE))
    m1, m2 = loaded.recipe.sources

    assert tmp_path / "mine" == loaded.out
    assert tmp_path / "m1.pt" == loaded.checkpoint_path(m1)
    assert tmp_path / "m1.fisher.safetensors" == loaded.fisher_path(m1)
    assert tmp_path / "other.safetensors" == loaded.fisher_path(m2)
    assert tmp_path / "mine" / "merged.pt" == loaded.merge_path
    assert Path("/data/hcp") == loaded.data_path("hcp")
    assert tmp_path / "brats" == loaded.data_path("brats/")


def test_home_folder_is_that_of_a_user_who_is_there(tmp_path, monkeypatch):
    """A path begins with ~ in every key of a path; an unknown user's is taken as it is, and is missing then."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = "version: 1\nout: ~/out\ncache: ~nobody-of-that-name/cache\ntarget: {data: ~nobody-of-that-name/brats}\n"
    loaded = load_recipe(write_recipe(tmp_path, text))

    assert tmp_path / "home" / "out" == loaded.out
    assert tmp_path / "~nobody-of-that-name/cache" == loaded.prepared
    assert tmp_path / "~nobody-of-that-name/brats" == loaded.data_path("~nobody-of-that-name/brats")
    assert loaded.out / "~nobody-of-that-name" == loaded.output_path("~nobody-of-that-name")


def test_out_by_flag_beats_the_recipe_beats_the_name(tmp_path):
    """In this order."""
    path = write_recipe(tmp_path, RECIPE + "out: results\n")

    assert tmp_path / "results" == load_recipe(path).out
    assert Path("elsewhere") == load_recipe(path, out=Path("elsewhere")).out


def test_name_left_out_is_that_of_the_file(tmp_path):
    """And so is OUT."""
    loaded = load_recipe(write_recipe(tmp_path, "version: 1", name="study.yaml"))

    assert "study" == loaded.name
    assert tmp_path / "study" == loaded.out


def test_source_without_checkpoint_is_what_training_makes(tmp_path):
    """Under OUT, by its name."""
    text = "version: 1\nsources: [{name: m1, target: {data: hcp, regions: brats}, train: {}}]"
    loaded = load_recipe(write_recipe(tmp_path, text))

    assert loaded.out / "m1" / "train" / "best.safetensors" == loaded.checkpoint_path(loaded.recipe.sources[0])
    assert loaded.out / "m1" / "train" / "best.fisher.safetensors" == loaded.fisher_path(loaded.recipe.sources[0])


def test_architecture_as_a_name_or_with_arguments(tmp_path):
    """Both give a name and arguments; none gives None."""
    loaded = load_recipe(write_recipe(tmp_path, RECIPE))

    assert {"base_filters": 8} == loaded.architecture.arguments
    assert ("isensee2017", {}) == (
        (model := load_recipe(write_recipe(tmp_path, "version: 1\narchitecture: isensee2017")).architecture).name,
        model.arguments,
    )
    assert load_recipe(write_recipe(tmp_path, "version: 1")).architecture is None


@pytest.mark.parametrize(
    ("told", "key"),
    [
        ("r.yaml, line 2: wanted 1, found 2", "version: 2"),
        ("unknown key 'mrege': r.yaml, line 3; did you mean 'merge'?", "version: 1\nmrege: {method: imm}"),
        ("unknown key 'merge.metod': r.yaml, line 3; did you mean 'method'?", "version: 1\nmerge: {metod: imm}"),
        (
            "unknown key 'sources.0.chekpoint': r.yaml, line 4; did you mean 'checkpoint'?",
            "version: 1\nsources:\n  - {name: m1, chekpoint: a}",
        ),
        (
            "unknown key 'sources.0.target.split.sed': r.yaml, line 7; did you mean 'seed'?",
            "version: 1\nsources:\n  - name: m1\n    target:\n      data: hcp\n      split: {sed: 1}\n    train: {}",
        ),
        ("unknown key 'adapt.augment.flips': r.yaml, line 3; did you mean 'flip'?", "version: 1\nadapt: {augment: {flips: true}}"),
        (
            "unknown key 'study.sizes.4 %.trian': r.yaml, line 3; did you mean 'train'?",
            "version: 1\nstudy: {sizes: {4 %: {trian: 1}}}",
        ),
    ],
)
def test_unknown_keys_get_the_nearest_known_one(tmp_path, told, key):
    """At every depth, with the line."""
    lines = problems_of(tmp_path, f"\n{key}")

    assert any(told in line for line in lines), lines


def test_all_problems_at_once(tmp_path):
    """One line each."""
    text = """
    version: 1
    sources:
      - {name: m1}
      - {checkpoint: m2.pt}
    merge: {granularity: layers, ratio: uniform}
    adapt: {epochs: 0}
    finetune: {learning_rate: .nan}
    """
    path = write_recipe(tmp_path, text)
    with pytest.raises(Problems) as caught:
        load_recipe(path)

    assert 2 == caught.value.exit_code
    granularities = "'model', 'layer', 'tensor' or 'kernel'"
    assert [
        "wrong value of 'sources.0': r.yaml, line 4; give a checkpoint, or target and train",
        "the key 'sources.1.name' is missing: r.yaml, line 5",
        f"wrong value of 'merge.granularity': r.yaml, line 6: wanted {granularities}, found another text; did you mean 'layer'?",
        "unknown key 'merge.ratio': r.yaml, line 6; did you mean 'ratios'?",
        "wrong value of 'adapt.epochs': r.yaml, line 7: wanted at least 1, found 0",
        "wrong value of 'finetune.learning_rate': r.yaml, line 8: wanted a finite number, found nan",
    ] == str(caught.value).replace(str(path), "r.yaml").splitlines()


def test_values_are_not_echoed(tmp_path):
    """What a user typed may be a name of a patient or a path."""
    lines = problems_of(tmp_path, "version: 1\nadapt: {epochs: DOE_JOHN}")

    assert ["wrong value of 'adapt.epochs': r.yaml, line 2: wanted a whole number, found a text"] == lines


def test_union_is_told_once(tmp_path):
    """A value that fits no member of a union is one problem, not one a member."""
    assert 1 == len(problems_of(tmp_path, "version: 1\nmerge: {ratios: {m1: many}}"))
    assert 1 == len(problems_of(tmp_path, "version: 1\ntarget: {data: a, regions: {ET: [-4]}}"))
    assert 1 == len(problems_of(tmp_path, "version: 1\ntarget: {data: a, split: 5}"))


@pytest.mark.parametrize(
    ("expected", "override", "look"),
    [
        (3, "adapt.epochs=3", lambda recipe: recipe.adapt.epochs),
        ("other", "target.data=other", lambda recipe: recipe.target.data),
        (Path("new.pt"), "sources.m2.checkpoint=new.pt", lambda recipe: recipe.sources[1].checkpoint),
        (Path("new.pt"), "sources.0.checkpoint=new.pt", lambda recipe: recipe.sources[0].checkpoint),
        ({"m1": 0.3, "m2": 0.7}, "merge.ratios={m1: 0.3, m2: 0.7}", lambda recipe: recipe.merge.ratios),
        (("t1",), "target.modalities=[t1]", lambda recipe: recipe.target.modalities),
        (None, "finetune.patience=null", lambda recipe: recipe.finetune.patience),
        (Path("/a=b"), "data.hcp=/a=b", lambda recipe: recipe.data["hcp"]),
        ({"base_filters": 4}, "architecture.base_filters=4", lambda recipe: recipe.architecture.arguments),
    ],
)
def test_overrides_beat_the_file(tmp_path, expected, override, look):
    """Keys by their path, items of a list by index or by name, also keys that the file does not have."""
    assert expected == look(load_recipe(write_recipe(tmp_path, RECIPE), overrides=[override]).recipe)


@pytest.mark.parametrize(
    ("told", "override"),
    [
        ("cannot read the override: --set adapt.epochs: wanted key.path=value", "adapt.epochs"),
        ("cannot read the override: --set =3: wanted key.path=value", "=3"),
        ("no such item: --set sources.m3.checkpoint: found m3; known: m1, m2", "sources.m3.checkpoint=x"),
        ("no key can be set there: --set name.x: found a plain value in the recipe", "name.x=1"),
        ("no key can be set there: --set name.x.y: found a plain value in the recipe", "name.x.y=1"),
    ],
)
def test_wrong_overrides(tmp_path, told, override):
    """Are told with the flag."""
    assert [told] == problems_of(tmp_path, RECIPE, overrides=[override])


def test_unknown_key_in_an_override(tmp_path):
    """Is told of the flag, as the file does not hold it."""
    (line,) = problems_of(tmp_path, RECIPE, overrides=["adapt.epoch=3"])

    assert line.startswith("unknown key 'adapt.epoch': --set adapt.epoch")
    assert line.endswith("; did you mean 'epochs'?")


def test_override_that_is_no_yaml(tmp_path):
    """Names the flag as its place."""
    (line,) = problems_of(tmp_path, RECIPE, overrides=["adapt.epochs=[3"])

    assert "the value is no YAML: --set adapt.epochs: wanted ',' or ']', found the end of the file" == line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("adapt.epochs=many", "wrong value of 'adapt.epochs': --set adapt.epochs: wanted a whole number, found a text"),
        ("adapt.epochs=0.5", "wrong value of 'adapt.epochs': --set adapt.epochs: wanted a whole number, found 0.5"),
        ("adapt.compile=1.5", "wrong value of 'adapt.compile': --set adapt.compile: wanted true or false, found 1.5"),
        ("adapt={epoch: 3}", "unknown key 'adapt.epoch': --set adapt; did you mean 'epochs'?"),
        ("merge.ratios={m1:1}", "wrong value of 'merge.ratios.m1:1': --set merge.ratios: wanted a number, found nothing; write a space"),
    ],
)
def test_what_an_override_got_wrong_is_told_of_the_flag(tmp_path, override, told):
    """Not of a line of the file, which does not hold it."""
    lines = problems_of(tmp_path, RECIPE, overrides=[override])

    assert lines[0].startswith(told)


def test_changed_copy_keeps_the_rest(tmp_path):
    """For the steps of a study."""
    loaded = load_recipe(write_recipe(tmp_path, RECIPE))
    changed = loaded.changed(out=tmp_path / "step", seed=5)

    assert (5, tmp_path / "step") == (changed.recipe.seed, changed.out)
    assert (0, loaded.recipe.sources) == (loaded.recipe.seed, changed.recipe.sources)


def test_missing_recipe(tmp_path):
    """Is a recipe error, exit code 2."""
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "r.yaml")
