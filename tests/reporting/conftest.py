from __future__ import annotations

import pytest

from mergekit3d.metrics import SubjectMetrics
from mergekit3d.plots.fisher import Information
from mergekit3d.reporting.results import (
    Adaptation,
    Arm,
    Evaluation,
    Fisher,
    Forgetting,
    Picture,
    Provenance,
    StudyResults,
    Subjects,
    Training,
)

REGIONS = ("ET", "WT")
DICE = {"none": 0.40, "m1": 0.52, "m2": 0.50, "imm": 0.60, "timm": 0.70}
LOG = "epoch,step,seconds,learning_rate,train_loss,validation_loss,validation_dice,validation_dice_ET,validation_dice_WT"


def metrics(mean, *, subjects=8, slope=0.01):
    """Rows whose mean over regions is `mean` on average; subject i lies (i - 3.5) * slope off."""
    return [
        SubjectMetrics(f"s{index}", region, mean + slope * (index - (subjects - 1) / 2) + offset, 5.0)
        for index in range(subjects)
        for region, offset in zip(REGIONS, (-0.1, 0.1), strict=True)
    ]


def five_arms():
    return [Arm(name, "4 subjects", metrics(mean), epochs=20, validation_dice=mean) for name, mean in DICE.items()]


@pytest.fixture
def arms():
    """Five initialisations in the paper's order at one size and seed."""
    return five_arms()


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """A study with every part, and hostile names in all of them."""
    log = tmp_path_factory.mktemp("CANARY") / "log.csv"
    log.write_text(f"{LOG}\n1,10,1,0.001,0.9,0.9,0.1,0.1,0.1\n2,20,2,0.001,0.8,0.8,0.2,0.2,0.2\n")
    evil = "<script>alert('x')</script>&\""
    ratios = {"sources": ["m1", "m2"], "granularity": "layer", "layers": {f"encoder.0{evil}": [0.3, 0.7], "decoder.0": [0.6, 0.4]}}
    fusion = {"tensors": [{"name": evil, "outcome": "fused", "shape": [4, 2], "ratios": {"m1": 0.3, "m2": 0.7}, "detail": evil}]}
    return StudyResults(
        title=evil,
        arms=[*five_arms()[3:], Arm(evil, "4 subjects", metrics(0.1), log=log)],
        data=evil,
        sources=("m1", "m2"),
        adaptations=[Adaptation("4 subjects", ratios, log=log, epochs=15, validation_dice=0.44)],
        trainings=[Training("m1", None, 30, 0.85)],
        forgetting=Forgetting([evil], ["m1", "imm"], [[0.89, None]]),
        pictures=[Picture(b"\x89PNG", evil)],
        fusions={evil: fusion},
        subjects=[Subjects(evil, [evil], [evil] * 7, 4, 2, 8, [evil], evil)],
        evaluations=[Evaluation(evil, metrics(0.5), {"mean": {"ET": {"NSD": 0.8, "volume_pred_ml": 3.0, "volume_ref_ml": 4.0}}})],
        fishers={evil: Fisher({f"encoder.0{evil}": Information(3.0, 10, 0.5), "decoder.0": Information(1.0, 5)}, 6, 4.0, 0.5, evil)},
        provenance=Provenance(
            versions={evil: "1"},
            inputs={evil: "cd" * 32},
            digests={"m1": "ab" * 32},
            seeds=(0,),
            recipe=f"data: /home/CANARY/brats # {evil}\n",
            machine=evil,
            seconds=290.0,
            facts={evil: evil},
        ),
    )
