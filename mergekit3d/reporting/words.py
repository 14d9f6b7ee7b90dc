"""What a report is called and asks where no recipe says it: told from what there is."""

from __future__ import annotations

from mergekit3d.reporting.results import TRANSFER, StudyResults, listed

SEQUENCE = "Of tasks learned one after the other: how much of each do the networks, and the merges of all of them, still know?"


def title_of(results: StudyResults) -> str:
    """A title from the parts that are there; no folder's name, which may be a patient's."""
    if len(results.arms) > 1:
        return "Study"
    sources = [str(source) for adaptation in results.adaptations for source in adaptation.ratios.get("sources", ())]
    parts = [f"adaptation of {listed(list(dict.fromkeys(sources)))}"] if results.adaptations else []
    parts += ["fusion"] if results.fusions else []
    parts += [_training(results)] if results.trainings or results.arms else []
    parts += ["evaluation"] if results.evaluations else []
    parts += ["comparison"] if results.comparisons else []
    parts += ["forgetting"] if results.forgetting is not None and not parts else []
    parts += ["Fisher information"] if results.fishers and not parts else []
    words = listed(parts) or "report"
    return words[:1].upper() + words[1:]


def _training(results: StudyResults) -> str:
    names = {training.name for training in results.trainings}
    return "fine-tuning" if results.arms or "fine-tuning" in names else "training"


def question_of(results: StudyResults) -> str:
    """What the parts that are there answer."""
    if len(results.arms) > 1:
        return TRANSFER
    first = next(iter(results.comparisons.values()), None)
    candidates = (
        (
            first is not None,
            f"Does {first.first if first else ''} segment the same subjects better than {listed(first.others if first else ())}?",
        ),
        (bool(results.evaluations or results.arms), "How well does the network segment subjects that it was not trained on?"),
        (bool(results.adaptations), "How much should each source count, layer by layer, on the data of the target?"),
        (bool(results.fusions), "What became of every tensor when the sources were fused?"),
        (results.forgetting is not None, SEQUENCE),
        (bool(results.trainings), "How did the training go, and where was it best?"),
        (bool(results.fishers), "Which layers does the network know most about?"),
    )
    return next((question for applies, question in candidates if applies), "")
