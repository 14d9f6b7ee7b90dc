"""Lightning's checkpoints."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch

from mergekit3d import convert
from mergekit3d.checkpoints import open_checkpoint, recognised_format
from mergekit3d.errors import InputError, UsageError
from tests.builders import assert_mutants_are_refused

TENSORS = {"model.0.weight": torch.arange(6.0), "model.0.bias": torch.ones(2), "head.weight": torch.zeros(3)}


def save_lightning(path, state, **content):
    """A checkpoint as Lightning 2 writes it."""
    whole = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/data/best.ckpt", "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(40.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "channels": [16, 32]},
        **content,
    }
    torch.save(whole, path)


@pytest.mark.parametrize("attribute", ["net.", "model.", "network.", "segmenter._orig_mod.", ""])
def test_names_are_those_of_the_network(tmp_path, attribute):
    """Without the attribute that holds it, once: MONAI's own names may begin with `model.` too."""
    save_lightning(tmp_path / "last.ckpt", {f"{attribute}{name}": tensor for name, tensor in TENSORS.items()})
    checkpoint = open_checkpoint(tmp_path / "last.ckpt")

    assert "lightning" == recognised_format(tmp_path / "last.ckpt").name
    assert list(TENSORS) == list(checkpoint.entries)
    assert np.arange(6.0).tolist() == checkpoint.read("model.0.weight").tolist()


def test_names_under_several_attributes_stay(tmp_path):
    """Nothing is left out."""
    save_lightning(tmp_path / "last.ckpt", {"net.a": torch.ones(1), "criterion.weight": torch.ones(2)})

    assert ["net.a", "criterion.weight"] == list(open_checkpoint(tmp_path / "last.ckpt").entries)


def test_hyperparameters_that_are_objects_are_refused(tmp_path):
    """Their class is named, and the way out is told."""
    save_lightning(tmp_path / "last.ckpt", TENSORS, hyper_parameters=argparse.Namespace(lr=1e-3))

    with pytest.raises(InputError, match="found argparse.Namespace; save its state_dict"):
        open_checkpoint(tmp_path / "last.ckpt")


def test_it_is_converted_from_and_not_to(tmp_path):
    """The tensors' bits stay."""
    save_lightning(tmp_path / "last.ckpt", TENSORS)
    convert(tmp_path / "last.ckpt", tmp_path / "last.safetensors")

    assert open_checkpoint(tmp_path / "last.ckpt").digest == open_checkpoint(tmp_path / "last.safetensors").digest
    with pytest.raises(UsageError, match="the format is read only: lightning"):
        convert(tmp_path / "last.safetensors", tmp_path / "back.ckpt", to="lightning")


def test_mutants_raise_nothing_but_input_errors(tmp_path):
    """And never give other values."""
    save_lightning(tmp_path / "last.ckpt", TENSORS)
    assert_mutants_are_refused(tmp_path / "last.ckpt")
