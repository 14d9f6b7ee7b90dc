"""The keys of a recipe, their defaults and their limits."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from mergekit3d.recipe import models
from mergekit3d.recipe.models import AdaptModel, ArchitectureModel, FinetuneModel, FisherModel, Recipe, SourceModel, TargetModel, TrainModel

MODELS = [
    model for model in vars(models).values() if isinstance(model, type) and issubclass(model, models.Model) and model is not models.Model
]


def refused(model, content):
    """The message of the one thing that is wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(content)
    return caught.value.errors()[0]["msg"]


def test_defaults_of_training_are_those_of_the_paper():
    """Adam, 5e-4, halved after 10 epochs without a better loss, stopped after 50, at most 500, batch 1, whole volumes, soft Dice."""
    for settings in (TrainModel(), FinetuneModel()):
        found = (settings.optimizer, settings.learning_rate, settings.plateau_patience, settings.plateau_factor)
        assert ("adam", 5e-4, 10, 0.5) == found
        assert (50, 500, 1, None) == (settings.patience, settings.epochs, settings.batch_size, settings.patch_size)
        assert ("dice", "plateau") == (settings.loss, settings.schedule)


def test_adaptation_is_short():
    """10 to 20 epochs in the paper, stopped on the validation set, starting at IMM."""
    assert (20, 5, "uniform") == (AdaptModel().epochs, AdaptModel().patience, AdaptModel().ratios)


def test_defaults_of_the_merge():
    """T-IMM, layer by layer; heads and norms private by the architecture's default."""
    recipe = Recipe(version=1)

    assert ("timm", "layer", None) == (recipe.merge.method, recipe.merge.granularity, recipe.merge.ratios)
    assert (None, ("*",)) == (recipe.partitions.private, recipe.partitions.shared)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_says_what_it_means(model):
    """For the schema that editors show."""
    assert all(field.description for field in model.model_fields.values())
    assert model.model_config["frozen"]
    assert issubclass(model, BaseModel)


@pytest.mark.parametrize("model", [model for model in MODELS if model is not ArchitectureModel], ids=lambda model: model.__name__)
def test_every_model_refuses_unknown_keys(model):
    """But for the arguments of a network."""
    assert "forbid" == model.model_config["extra"]


def test_source_needs_weights_or_a_way_to_make_them():
    """A checkpoint, or target and train."""
    SourceModel(name="m1", checkpoint="a.pt")
    SourceModel(name="m1", target={"data": "hcp"}, train={})
    assert "give a checkpoint, or target and train" in refused(SourceModel, {"name": "m1", "train": {}})


def test_regions_or_labels():
    """One sigmoid each, or a softmax; not both."""
    assert "give regions or labels, not both" in refused(TargetModel, {"data": "a", "regions": "brats", "labels": {"a": 1}})


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("two sources or baselines have the same name", ["m1", "m1"]),
        ("'imm' cannot be the name of a source", ["imm"]),
        ("pattern", ["../m1"]),
        ("pattern", ["a b"]),
    ],
)
def test_names_of_sources(told, names):
    """Are distinct, no words of the recipe, and safe as names of folders."""
    assert told in refused(Recipe, {"version": 1, "sources": [{"name": name, "checkpoint": "a.pt"} for name in names]})


def test_yaml_true_is_an_estimator():
    """`fisher: {estimator: true}` names the labels, it is no switch."""
    assert "true" == FisherModel.model_validate({"estimator": True}).estimator
    assert "'sampled' or 'true'" in refused(FisherModel, {"estimator": False})


@pytest.mark.parametrize(
    ("model", "content"),
    [
        (TrainModel, {"learning_rate": float("inf")}),
        (TrainModel, {"learning_rate": float("nan")}),
        (TrainModel, {"learning_rate": 0}),
        (TrainModel, {"patch_size": [8, 8]}),
        (TrainModel, {"patch_size": [8, 8, 0]}),
        (TrainModel, {"smoothing": 1.0}),
        (TargetModel, {"data": "a", "spacing_mm": [1, 1, float("inf")]}),
        (TargetModel, {"data": "a", "modalities": []}),
        (Recipe, {"version": 1, "seed": -1}),
        (Recipe, {"version": 1, "study": {"seeds": [-1]}}),
        (Recipe, {"version": 1, "merge": {"ratios": {"m1": float("nan")}}}),
        (Recipe, {"version": 3}),
        (Recipe, {}),
    ],
    ids=str,
)
def test_values_out_of_range(model, content):
    """Are refused before any work: no negative seed, nothing infinite."""
    with pytest.raises(ValidationError):
        model.model_validate(content)


def test_ids_of_outputs_may_be_one_number():
    """`ET: 4` stands for `ET: [4]`; the order of the names is kept."""
    target = TargetModel.model_validate({"data": "a", "labels": {"b": 2, "a": [1, 3]}})

    assert [("b", 2), ("a", (1, 3))] == list(target.labels.items())


def test_what_decides_a_result():
    """Time between snapshots, threads and places do not, at any depth; names that users give always do."""

    def recipe(**changes):
        source = {"name": "out", "target": {"data": "a", "modalities": ["t1"], "regions": {"cache": [1]}}}
        training = {"epochs": 3, **changes}
        return Recipe.model_validate({"version": 1, "sources": [{**source, "train": training}], "merge": {"ratios": {"out": 1.0}}})

    plain = recipe().decisive()
    assert plain == recipe(snapshot_minutes=1).decisive()
    assert plain != recipe(memory_format="channels_last").decisive()
    assert {"out": 1.0} == plain["merge"]["ratios"]
    assert {"cache": [1]} == plain["sources"][0]["target"]["regions"]
    assert not {"out", "cache", "workers"} & plain.keys()
    assert "seed" not in recipe().decisive(without=frozenset({"seed"}))
