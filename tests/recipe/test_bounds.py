"""Where a recipe may write: within its own folder and the output folder that the user gave, unless the user says otherwise."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mergekit3d.errors import MergeKit3DError, RecipeError
from mergekit3d.options import Options
from mergekit3d.recipe import load_recipe
from mergekit3d.recipe.load import LoadedRecipe
from mergekit3d.study import Study
from mergekit3d.verbs.fuse import fuse
from mergekit3d_cli.app import app
from tests.builders import two_sources, write_recipe

TASK = "target: {data: hcp, regions: hcp-1-7}"
SOURCES = "[{name: m1, checkpoint: m1.safetensors}, {name: m2, checkpoint: m2.safetensors}]"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of recipes beside others, and links out of it."""
    home = tmp_path / "home"
    (home / "inside").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (home / "link").symlink_to(tmp_path / "elsewhere")
    (home / "within").symlink_to(home / "inside")
    (home / "file.safetensors").symlink_to(tmp_path / "elsewhere" / "victim.safetensors")
    (home / "loop").symlink_to(home / "loop")
    return home


def load(home: Path, text: str, **keywords: object) -> LoadedRecipe:
    return load_recipe(write_recipe(home, f"version: 1\nsources: {SOURCES}\n{text}"), **keywords)


OUTSIDE = {
    "out: ../elsewhere": ("out", "../elsewhere", 3),
    "out: /var/elsewhere": ("out", "/var/elsewhere", 3),
    "out: inside/../../elsewhere": ("out", "inside/../../elsewhere", 3),
    "out: link": ("out", "link, through a link", 3),
    "out: link/deeper": ("out", "link/deeper, through a link", 3),
    "out: ~/elsewhere": ("out", "~/elsewhere", 3),
    "out: link/..": ("out", "link/.., through a link", 3),
    "out: loop": ("out", "loop, through a link", 3),
    "name: link": ("out", "link, through a link", None),
    'out: "a\\0b"': ("out", "a\\x00b, through a link", 3),
    "\nmerge: {method: imm, out: ../../fused.safetensors}": ("merge.out", "../../fused.safetensors", 4),
    "merge:\n  method: imm\n  out: /var/fused.safetensors": ("merge.out", "/var/fused.safetensors", 5),
    "merge: {out: ~/fused.safetensors}": ("merge.out", "~/fused.safetensors", 3),
    "merge: {out: ../file.safetensors}": ("merge.out", "../file.safetensors, through a link", 3),
    "cache: /scratch/prepared": ("cache", "/scratch/prepared", 3),
    "cache: ~/prepared": ("cache", "~/prepared", 3),
    "cache: link": ("cache", "link, through a link", 3),
}


@pytest.mark.parametrize("text", OUTSIDE)
def test_places_outside_are_refused(home: Path, text: str) -> None:
    """By exit code 2, with the key, its line, and the place as it is written; links are followed."""
    key, found, line = OUTSIDE[text]
    with pytest.raises(RecipeError) as caught:
        load(home, text)
    assert caught.value.failed == f"{key!r} leads out of where a recipe may write"
    assert str(caught.value.where) == f"{home / 'recipe.yaml'}{'' if line is None else f', line {line}'}"
    assert f"found {found};" in str(caught.value)
    assert f"by hand: {'--out' if key == 'out' else f'--set {key}=PATH'}" in str(caught.value)
    assert 2 == caught.value.exit_code


@pytest.mark.parametrize(
    "text",
    ["", "out: results/deep", "out: within", "out: .", "merge: {out: ../beside.safetensors}", "cache: inside/prepared", "cache: false"],
)
def test_places_inside_are_let_be(home: Path, text: str) -> None:
    """Anywhere below the recipe's folder, also through a link that stays there."""
    assert load(home, text).out.resolve().is_relative_to(home)


def test_all_places_are_told_at_once(home: Path) -> None:
    """A line each."""
    with pytest.raises(MergeKit3DError) as caught:
        load(home, "out: ../a\nmerge: {out: /b.safetensors}\ncache: /c")
    assert ["'out'", "'merge.out'", "'cache'"] == [line.split()[0] for line in str(caught.value).splitlines()]
    assert 2 == caught.value.exit_code


@pytest.mark.parametrize("text", OUTSIDE)
def test_the_flag_that_the_error_names_allows_it(home: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied from the message; but for what can be no path."""
    monkeypatch.chdir(home)
    with pytest.raises(RecipeError) as caught:
        load(Path(), text)
    folder = Path(str(caught.value.todo).split("--allow-outside ")[1].split(", or give")[0].strip("'"))
    if any(word in text for word in ("loop", "\\0", "link/..", "victim")):
        return
    assert load(Path(), text, allow_outside=[folder]).recipe is not None


def test_the_users_hand_goes_anywhere(home: Path, tmp_path: Path) -> None:
    """--out and --set beat the file, and so does a whole part that is set; but what else the file says stays bound."""
    elsewhere = tmp_path / "elsewhere"
    assert elsewhere == load(home, "out: /var/x", out=elsewhere).out
    assert elsewhere == load(home, "", overrides=[f"out={elsewhere}"]).out
    assert elsewhere / "f.pt" == load(home, "", overrides=[f"merge={{out: {elsewhere}/f.pt}}"]).merge_path
    assert elsewhere == load(home, "cache: /var/x", overrides=[f"cache={elsewhere}"]).prepared
    assert elsewhere / "fused.safetensors" == load(home, "merge: {method: imm}", out=elsewhere).merge_path
    with pytest.raises(RecipeError, match="'cache' leads out"):
        load(home, "cache: /var/x", out=elsewhere, overrides=["merge.method=imm"])


FISHER = {
    "{name: m1, checkpoint: m1.pt, fisher: ../victim.safetensors, TASK}": "sources.0.fisher",
    "{name: m1, checkpoint: ../models/m1.pt, TASK}": "sources.0.checkpoint",
    "{name: m1, fisher: link/victim.safetensors, train: {}, TASK}": "sources.0.fisher",
}


@pytest.mark.parametrize("source", FISHER)
def test_fisher_diagonals_are_written_inside_alone(home: Path, source: str) -> None:
    """Where a source's keys place them: reading one there is fine, estimating it is not."""
    text = f"version: 1\nsources: [{source.replace('TASK', TASK)}]\nmerge: {{method: imm}}\nstudy: {{initialisations: [imm]}}"
    path = write_recipe(home, text)
    loaded = load_recipe(path)
    with pytest.raises(RecipeError, match=f"'{FISHER[source]}' leads out.*line 2") as caught:
        loaded.fisher_output(loaded.recipe.sources[0])
    assert 2 == caught.value.exit_code
    study = Study(loaded, Options(), None)
    with pytest.raises(RecipeError, match="leads out"):
        list(study._sources())
    by_hand = load_recipe(path, overrides=[f"{FISHER[source].replace('0', 'm1')}=/somewhere/m1.safetensors"])
    assert Path("/somewhere") == by_hand.fisher_output(by_hand.recipe.sources[0]).parent


def test_inputs_may_lie_anywhere(home: Path) -> None:
    """Data and checkpoints stand on other disks than recipes do."""
    text = "version: 1\ndata: {hcp: /data/hcp}\nsources: [{name: m1, checkpoint: /models/m1.pt, fisher: /models/m1.fisher.safetensors}]"
    loaded = load_recipe(write_recipe(home, text + "\nmerge: {ratios: /shared/ratios.json}"))
    assert Path("/models/m1.pt") == loaded.checkpoint_path(loaded.recipe.sources[0])


def test_bounds_go_along_to_other_processes(home: Path) -> None:
    """A study's steps run in processes of their own."""
    loaded = load(home, "")
    assert loaded == pickle.loads(pickle.dumps(loaded))
    assert loaded.bounds == loaded.changed(out=home / "arm").bounds


def test_nothing_is_written_where_it_must_not_be(home: Path, tmp_path: Path) -> None:
    """Every command that takes a recipe refuses; with the flag, `fuse` writes there."""
    two_sources(home)
    recipe = write_recipe(home, f"version: 1\nsources: {SOURCES}\nmerge: {{method: imm, out: ../../elsewhere/fused.safetensors}}")
    for command in ("train", "fisher", "fuse", "adapt", "finetune", "inspect", "forgetting", "run"):
        words = ["run", str(recipe)] if command == "run" else [command, "--recipe", str(recipe)]
        result = CliRunner().invoke(app, words)
        assert (2, 1) == (result.exit_code, len(result.stderr.splitlines())), (command, result.output)
        assert "error: 'merge.out' leads out of where a recipe may write" in result.stderr
    assert [] == list((tmp_path / "elsewhere").iterdir())
    allowed = CliRunner().invoke(app, ["fuse", "--recipe", str(recipe), "--allow-outside", str(tmp_path / "elsewhere")])
    assert 0 == allowed.exit_code, allowed.output
    assert ["fused.report.json", "fused.safetensors"] == sorted(path.name for path in (tmp_path / "elsewhere").glob("f*"))
    assert tmp_path / "elsewhere" / "other.pt" == fuse(recipe, options=Options(out=tmp_path / "elsewhere" / "other.pt")).out


@pytest.mark.parametrize("command", [["fisher", "m1.pt", "--data", "hcp"], ["forgetting", "m1.pt"]])
def test_the_flag_needs_a_recipe(command: list[str]) -> None:
    """There is nothing to allow otherwise."""
    result = CliRunner().invoke(app, [*command, "--allow-outside", "/x"])
    assert (2, True) == (result.exit_code, "--allow-outside is about what a recipe writes" in result.stderr)
