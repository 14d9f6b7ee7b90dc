"""Each command calls one function of the library with what was parsed, or says in one line what it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mergekit3d.options import Options

EVERY_COMMAND = (
    "demo", "run", "phantom", "preprocess", "train", "fisher", "adapt", "fuse", "finetune", "methods", "predict", "evaluate", "compare",
    "forgetting", "plot", "report", "inspect", "verify", "convert", "schema",
)  # fmt: skip


EVALUATE_NEEDS = (
    "evaluate needs a checkpoint with --data, or --pred with --truth; for example: mergekit3d evaluate best.safetensors --data brats/"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "train needs a recipe; for example: mergekit3d train --recipe m1.yaml"),
        (["fisher"], "fisher needs a checkpoint and its data, or a recipe; for example: mergekit3d fisher m1.pt --data hcp/"),
        (["fisher", "m1.pt"], "fisher needs a checkpoint and its data, or a recipe; for example: mergekit3d fisher m1.pt --data hcp/"),
        (
            ["fisher", "m1.pt", "--recipe", "r"],
            "a checkpoint and --recipe exclude each other; the recipe says it all; change it with --set",
        ),
        (["fisher", "m1.pt", "--set", "a=1"], "--set overrides keys of a recipe; pass --recipe, or leave --set out"),
        (["forgetting", "a.pt", "--set", "a=1"], "--set overrides keys of a recipe; pass --recipe, or leave --set out"),
        (["fuse"], "fuse needs a recipe; for example: mergekit3d fuse --recipe timm.yaml"),
        (["adapt"], "adapt needs a recipe; for example: mergekit3d adapt --recipe timm.yaml"),
        (["finetune"], "finetune needs a recipe with a target to train on; for example: mergekit3d finetune --recipe timm.yaml"),
        (["run"], "run needs a recipe; for example: mergekit3d run timm.yaml"),
        (["phantom"], "phantom needs a folder to write; for example: mergekit3d phantom hcp/ --layout hcp --subjects 12"),
        (["phantom", "x"], "phantom needs a layout; for example: mergekit3d phantom hcp/ --layout hcp --subjects 12"),
        (
            ["predict", "best.pt", "--data", "brats"],
            "predict needs an output folder; for example: mergekit3d predict best.safetensors --data brats/ --out predictions/",
        ),
        (["evaluate"], EVALUATE_NEEDS),
        (["evaluate", "best.pt", "--truth", "brats"], EVALUATE_NEEDS),
        (
            ["evaluate", "--pred", "p"],
            "evaluate needs --truth beside --pred; for example: mergekit3d evaluate --pred predictions/ --truth brats/",
        ),
        (["preprocess", "brats"], "preprocess needs a folder to write; for example: mergekit3d preprocess brats/ brats-n4/"),
        (["compare", "a.csv"], "compare needs two files or more; for example: mergekit3d compare timm/metrics.csv imm/metrics.csv"),
        (["plot"], "plot needs a file; for example: mergekit3d plot out/adapt/ratios.json"),
        (["inspect"], "inspect needs checkpoints or a recipe; for example: mergekit3d inspect m1.pt m2.pt"),
        (["report"], "report needs the folder of a run; for example: mergekit3d report demo/"),
        (["verify"], "verify needs a file; for example: mergekit3d verify fused.safetensors"),
        (["convert"], "convert needs a checkpoint; for example: mergekit3d convert m1.pth m1.safetensors"),
        (["convert", "m1.pth"], "convert needs an output; for example: mergekit3d convert m1.pth m1.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_is_said_in_one_line_with_an_example(mergekit, arguments, said):
    """Exit code 2, one line, an example to copy."""
    outcome = mergekit(*arguments)

    assert 2 == outcome.exit_code
    assert f"error: {said}\n" == outcome.stderr


@pytest.mark.parametrize("command", ["train", "fuse", "adapt", "finetune"])
def test_recipe_commands_pass_recipe_overrides_and_options(mergekit, fake, command):
    """The flags that all long commands share arrive as one value; --set may be repeated and hold any value."""
    seen = fake(command)

    outcome = mergekit(
        command, "--recipe", "r.yaml", "--set", "merge.ratios={m1: 0.3}", "--set", "name=a=b", "--device", "cuda:1",
        "--precision", "fp32", "--seed", 7, "--out", "somewhere", "--force", "--resume", "--allow-outside", "a", "--allow-outside", "b",
    )  # fmt: skip

    assert 0 == outcome.exit_code, outcome.stderr
    assert (Path("r.yaml"),) == seen["arguments"]
    assert [Path("a"), Path("b")] == seen["allow_outside"]
    assert ("merge.ratios={m1: 0.3}", "name=a=b") == seen["overrides"]
    assert Options(device="cuda:1", precision="fp32", seed=7, out=Path("somewhere"), force=True, resume=True) == seen["options"]
    assert {"arguments", "overrides", "allow_outside", "options", "reporter"} == set(seen) - {"plot"}


def test_flags_left_out_are_the_defaults_of_the_library(mergekit, fake):
    """No flag, no difference from a call in Python."""
    seen = fake("fuse")
    mergekit("fuse", "--recipe", "r.yaml")

    assert Options() == seen["options"]
    assert () == seen["overrides"]


def test_run_takes_its_recipe_as_an_argument(mergekit, fake):
    """As a user would say it."""
    seen = fake("run")

    assert 0 == mergekit("run", "r.yaml", "--set", "seed=1").exit_code
    assert (Path("r.yaml"),) == seen["arguments"]
    assert ("seed=1",) == seen["overrides"]


def test_preprocess_passes_every_flag(mergekit, fake):
    """Sizes arrive parsed; what was not given is the library's default."""
    seen = fake("preprocess")

    outcome = mergekit(
        "preprocess", "in", "out", "--no-n4", "--no-crop", "--margin", 4, "--spacing-mm", "1,1,2.5", "--intensity", "nyul",
        "--landmarks", "a.json", "--workers", 3, "--resume", "--layout", "hcp", "--subjects-file", "names.txt", "--n4-shrink", 3,
    )  # fmt: skip

    assert 0 == outcome.exit_code, outcome.stderr
    assert (Path("in"), Path("out")) == seen.pop("arguments")
    seen.pop("reporter")
    assert {
        "n4": False, "n4_shrink": 3, "crop": False, "margin": 4, "spacing_mm": (1.0, 1.0, 2.5), "intensity": "nyul", "reference": None,
        "landmarks": Path("a.json"), "workers": 3, "resume": True, "force": False, "layout": "hcp", "subjects_file": Path("names.txt"),
    } == seen  # fmt: skip


def test_fisher_of_a_checkpoint(mergekit, fake):
    """Flags that were not given are left to the library."""
    seen = fake("fisher")

    assert 0 == mergekit("fisher", "m1.pt", "--data", "hcp").exit_code
    assert (Path("m1.pt"), Path("hcp")) == seen["arguments"]
    assert {
        "arguments", "layout", "modalities", "regions", "architecture", "subjects_file", "options", "reporter"
    } == set(seen)  # fmt: skip
    assert "auto" == seen["layout"]


def test_fisher_of_a_checkpoint_with_every_flag(mergekit, fake):
    """Lists and sizes arrive parsed."""
    seen = fake("fisher")

    outcome = mergekit(
        "fisher", "m1.pt", "--data", "hcp", "--estimator", "true", "--draws", 4, "--layout", "hcp", "--modalities", "t1, t2",
        "--regions", "hcp-1-7", "--max-subjects", 3, "--subjects-file", "names.txt", "--patch-size", "64,64,48",
        "--batch-size", 2, "--dtype", "sqrt-fp16", "--snapshot-minutes", 2,
    )  # fmt: skip

    assert 0 == outcome.exit_code, outcome.stderr
    assert "true" == seen["estimator"]
    assert 4 == seen["draws"]
    assert ("t1", "t2") == seen["modalities"]
    assert "hcp-1-7" == seen["regions"]
    assert 3 == seen["max_subjects"]
    assert Path("names.txt") == seen["subjects_file"]
    assert ((64, 64, 48), 2) == (seen["patch_size"], seen["batch_size"])
    assert ("sqrt-fp16", 2.0) == (seen["dtype"], seen["snapshot_minutes"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("monai.UNet", "monai.UNet"), ("{name: monai.UNet, channels: [8, 16]}", {"name": "monai.UNet", "channels": [8, 16]})],
)
def test_architecture_is_read_as_in_a_recipe(mergekit, fake, text, wanted):
    """A name, or a mapping."""
    seen = fake("fisher")

    assert 0 == mergekit("fisher", "m1.pt", "--data", "hcp", "--architecture", text).exit_code
    assert wanted == seen["architecture"]
    assert (
        "not an architecture: --architecture: wanted a name, or {"
        in mergekit("fisher", "m1.pt", "--data", "hcp", "--architecture", "[1]").stderr
    )


def as_one_of_two(monkeypatch, rank):
    """The environment that torchrun gives to a process of two."""
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_fisher_is_told_by_the_first_of_several_processes(mergekit, fake, monkeypatch):
    """torchrun starts many; one result stands on stdout."""
    fake("fisher")
    said = []
    for rank in ("0", "1"):
        as_one_of_two(monkeypatch, rank)
        outcome = mergekit("fisher", "m1.pt", "--data", "hcp")
        said.append((outcome.exit_code, outcome.stdout))

    assert [(0, "Dice 0.5\n"), (0, "")] == said


def test_commands_that_cannot_be_shared_are_refused_once(mergekit, fake, monkeypatch):
    """Each of several processes would do the whole of them."""
    fake("run")
    said = []
    for rank in ("0", "1"):
        as_one_of_two(monkeypatch, rank)
        outcome = mergekit("run", "timm.yaml")
        said.append((outcome.exit_code, outcome.stderr))

    todo = "start it without torchrun; train, fisher, adapt, finetune and predict share their work"
    assert [(2, f"error: run is work for one process: found 2 processes; {todo}\n"), (2, "")] == said


def test_fisher_of_a_recipe_turns_its_flags_into_overrides(mergekit, fake):
    """A flag beats the recipe, and --set as well."""
    seen = fake("fisher_sources")

    outcome = mergekit("fisher", "--recipe", "r.yaml", "--set", "fisher.draws=2", "--draws", 4, "--estimator", "true", "--patch-size", "64")

    assert 0 == outcome.exit_code, outcome.stderr
    assert (Path("r.yaml"),) == seen["arguments"]
    assert ("fisher.draws=2", "fisher.estimator=true", "fisher.draws=4", "fisher.patch_size=[64, 64, 64]") == seen["overrides"]


def test_demo_writes_to_demo_unless_told_otherwise(mergekit, fake):
    """The folder is both the argument and the option, so that nothing can disagree."""
    seen = fake("demo")

    assert 0 == mergekit("demo").exit_code
    assert (Path("demo"),) == seen["arguments"]
    assert Path("demo") == seen["options"].out
    mergekit("demo", "--out", "elsewhere")
    assert (Path("elsewhere"),) == seen["arguments"]


def test_phantom(mergekit, fake):
    """Every flag arrives under its name."""
    seen = fake("phantom")

    outcome = mergekit(
        "phantom", "out", "--layout", "brats", "--subjects", 3, "--labels", "maps", "--spacing-mm", 2.5, "--seed", 1, "--force"
    )

    assert 0 == outcome.exit_code, outcome.stderr
    del seen["reporter"]
    expected = {"layout": "brats", "subjects": 3, "labels": Path("maps"), "spacing_mm": 2.5, "seed": 1, "force": True}
    assert expected | {"arguments": (Path("out"),)} == seen


def test_predict(mergekit, fake):
    """Checkpoint, data and output folder in this order."""
    seen = fake("predict")

    outcome = mergekit("predict", "best.pt", "--data", "brats", "--out", "predictions", "--patch-size", "64", "--overlap", 0.25, "--mirror")

    assert 0 == outcome.exit_code, outcome.stderr
    assert (Path("best.pt"), Path("brats"), Path("predictions")) == seen["arguments"]
    assert ("auto", (64, 64, 64), 0.25, True) == tuple(seen[key] for key in ("layout", "patch_size", "overlap", "mirror"))
    assert (None, False, None) == tuple(seen[key] for key in ("mirror_axes", "probabilities", "submission"))


def test_predict_by_an_ensemble(mergekit, fake):
    """Several checkpoints before the flags."""
    seen = fake("predict")
    flags = ["--data", "brats", "--out", "p", "--mirror-axes", "x,z", "--probabilities", "--submission", "brats"]
    flags += ["--subjects-file", "test.txt"]

    assert 0 == mergekit("predict", "a.pt", "b.pt", *flags).exit_code
    assert [Path("a.pt"), Path("b.pt")] == seen["arguments"][0]
    assert ((0, 2), True, "brats") == tuple(seen[key] for key in ("mirror_axes", "probabilities", "submission"))
    assert Path("test.txt") == seen["subjects_file"]
    assert (
        "no such axes: --mirror-axes: wanted some of x, y, z, found w" in mergekit("predict", "a.pt", *flags, "--mirror-axes", "w").stderr
    )


def test_evaluate_a_checkpoint(mergekit, fake):
    """A checkpoint with its data; nnU-Net's convention unless told otherwise."""
    seen = fake("evaluate")

    assert 0 == mergekit("evaluate", "best.pt", "--data", "brats").exit_code
    assert (Path("best.pt"), Path("brats"), None, None) == seen["arguments"]
    assert ("nnunet", None, 1.0) == (seen["empty"], seen["regions"], seen["tolerance_mm"])
    flags = [
        "--tolerance-mm",
        "ET=1,WT=2.5",
        "--patch-size",
        "64",
        "--overlap",
        "0.25",
        "--batch-size",
        "2",
        "--mirror",
        "--mirror-axes",
        "x,y",
    ]
    assert 0 == mergekit("evaluate", "best.pt", "--data", "brats", *flags).exit_code
    assert {"ET": 1.0, "WT": 2.5} == seen["tolerance_mm"]
    keys = ("patch_size", "overlap", "batch_size", "mirror", "mirror_axes")
    assert ((64, 64, 64), 0.25, 2, True, (0, 1)) == tuple(seen[key] for key in keys)


def test_evaluate_segmentations(mergekit, fake):
    """Segmentations with their truth, with a shipped set of regions."""
    seen = fake("evaluate")

    outcome = mergekit(
        "evaluate", "--pred", "p", "--truth", "t", "--empty", "brats", "--layout", "brats", "--regions", "ET=4", "--regions", "TC=1,4",
        "--subjects-file", "names.txt",
    )  # fmt: skip

    assert 0 == outcome.exit_code, outcome.stderr
    assert (None, None, Path("p"), Path("t")) == seen["arguments"]
    assert ("brats", "brats", Path("names.txt")) == (seen["empty"], seen["layout"], seen["subjects_file"])
    assert {"ET": (4,), "TC": (1, 4)} == seen["regions"]


def test_compare(mergekit, fake):
    """Files in the order given, with the names to call them."""
    seen = fake("compare")

    assert 0 == mergekit("compare", "a.csv", "b.csv", "--names", "T-IMM,IMM", "--out", "o", "--force").exit_code
    assert ([Path("a.csv"), Path("b.csv")],) == seen["arguments"]
    assert (("T-IMM", "IMM"), Path("o"), True) == (seen["names"], seen["out"], seen["force"])


def test_forgetting(mergekit, fake):
    """Checkpoints with their sources and data, one folder or one a source; or a recipe."""
    seen = fake("forgetting")
    flags = ["--source", "m1=a.pt", "--source", "m2=b.pt"]

    assert 0 == mergekit("forgetting", "c.pt", *flags, "--data", "hcp", "--private", "kind:norm", "--mirror").exit_code
    assert ([Path("c.pt")],) == seen["arguments"]
    assert ({"m1": "a.pt", "m2": "b.pt"}, "hcp", ["kind:norm"], True) == tuple(
        seen[key] for key in ("sources", "data", "private", "mirror")
    )
    assert 0 == mergekit("forgetting", "c.pt", *flags, "--data", "m1=hcp", "--data", "m2=other").exit_code
    assert {"m1": "hcp", "m2": "other"} == seen["data"]
    assert 0 == mergekit("forgetting", "--recipe", "r.yaml", "--set", "seed=1").exit_code
    assert (Path("r.yaml"), ("seed=1",), None, None, None) == tuple(
        seen[key] for key in ("recipe", "overrides", "sources", "data", "mirror")
    )
    said = mergekit("forgetting", "c.pt", *flags, "--data", "hcp", "--data", "other").stderr
    assert "error: several folders of data: --data: wanted one for all sources, or NAME=DIR for each, found other\n" == said
    assert (
        "cannot read the flag: --source: wanted NAME=VALUE, each name once, found a.pt" in mergekit("forgetting", "--source", "a.pt").stderr
    )


def test_plot(mergekit, fake):
    """One file, or several with what they lie over."""
    seen = fake("plot")

    assert 0 == mergekit("plot", "ratios.json").exit_code
    assert ([Path("ratios.json")],) == seen["arguments"]
    assert {None} == {seen[key] for key in ("out", "image", "truth", "regions", "names")}
    assert 0 == mergekit("plot", "a.nii", "b.nii", "--image", "i.nii", "--truth", "t.nii", "--regions", "brats", "--names", "A,B").exit_code
    assert ([Path("a.nii"), Path("b.nii")],) == seen["arguments"]
    assert (Path("i.nii"), Path("t.nii"), "brats", ("A", "B")) == tuple(seen[key] for key in ("image", "truth", "regions", "names"))


def test_report(mergekit, fake):
    """A run's folder, where the page goes, and whether it may be replaced."""
    seen = fake("report")

    assert 0 == mergekit("report", "demo", "--out", "page.html", "--force").exit_code
    assert ((Path("demo"),), Path("page.html"), True) == (seen["arguments"], seen["out"], seen["force"])
    assert "did you mean 'report'?" in mergekit("reprot", "demo").stderr


def test_verify(mergekit, fake):
    """A file."""
    seen = fake("verify")

    assert 0 == mergekit("verify", "a.pt").exit_code
    assert (Path("a.pt"),) == seen["arguments"]


def test_inspect(mergekit, fake):
    """Checkpoints, or a recipe with its overrides."""
    seen = fake("inspect")

    assert 0 == mergekit("inspect", "a.pt", "b.pt", "--values").exit_code
    assert ([Path("a.pt"), Path("b.pt")],) == seen["arguments"]
    assert (None, (), True) == (seen["recipe"], seen["overrides"], seen["values"])
    assert 0 == mergekit("inspect", "--recipe", "r.yaml", "--set", "seed=1").exit_code
    assert ([], Path("r.yaml"), ("seed=1",)) == (seen["arguments"][0], seen["recipe"], seen["overrides"])


def test_methods_are_listed_with_what_they_need(mergekit):
    """A line each, then needs, parameters and reference; an object by name as JSON."""
    shown = mergekit("methods").stdout
    content = json.loads(mergekit("methods", "--json").stdout)

    assert "ties             trim small changes, elect a sign for every weight, average the changes that agree\n" in shown
    assert "                 needs merge.base\n                 parameters.density (0.2): share of each tensor's changes" in shown
    assert "                 Yadav et al., TIES-Merging" in shown
    assert ["Fisher diagonals"] == content["imm"]["needs"]
    assert 0.4 == content["task-arithmetic"]["parameters"]["scale"]["default"]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_help_of_every_command_has_an_example_and_the_common_flags(mergekit, command):
    """Examples to copy; --json, --quiet and --debug everywhere; at most 80 columns, ASCII, which no terminal lacks."""
    said = mergekit(command, "--help").stdout

    assert "Examples:" in said
    examples = said.split("Examples:\n")[1].replace(" \\\n", " ").partition("\n\n")[0]
    assert f"  mergekit3d {command}" in examples
    assert all(line.startswith(("  mergekit3d ", "  torchrun ")) for line in examples.splitlines())
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said.isascii()
    assert all(flag in said for flag in ("--json", "--quiet", "--debug"))


def test_help_lists_every_command_with_a_whole_sentence(mergekit):
    """In groups, in the order of the work; no summary is cut off at 80 columns."""
    said = mergekit("--help").stdout
    groups = re.findall(r"^([A-Z][a-z ]+):\n((?:  [a-z0-9]+ +[A-Z].*\n)+)", said, flags=re.MULTILINE)
    lines = [line for _, listing in groups for line in listing.splitlines()]

    assert ["All at once", "Data", "Sources", "Merging", "Results", "Files"] == [heading for heading, _ in groups]
    assert list(EVERY_COMMAND) == [line.split()[0] for line in lines]
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in lines)
