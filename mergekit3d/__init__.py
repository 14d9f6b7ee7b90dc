"""mergekit3d: adaptive merging of 3D medical segmentation networks (IMM, T-IMM).

Every command of the command line is one function here. They are imported on first use, so that ``import mergekit3d`` loads
neither torch nor the imaging libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit3d.datasets.phantom import phantom as phantom
    from mergekit3d.errors import MergeKit3DError as MergeKit3DError
    from mergekit3d.options import Options as Options
    from mergekit3d.verbs.adapt import adapt as adapt
    from mergekit3d.verbs.compare import compare as compare
    from mergekit3d.verbs.convert import convert as convert
    from mergekit3d.verbs.demo import demo as demo
    from mergekit3d.verbs.evaluate import evaluate as evaluate
    from mergekit3d.verbs.finetune import finetune as finetune
    from mergekit3d.verbs.fisher import fisher as fisher
    from mergekit3d.verbs.fisher import fisher_sources as fisher_sources
    from mergekit3d.verbs.forgetting import forgetting as forgetting
    from mergekit3d.verbs.fuse import fuse as fuse
    from mergekit3d.verbs.inspect import inspect as inspect
    from mergekit3d.verbs.methods import methods as methods
    from mergekit3d.verbs.plot import plot as plot
    from mergekit3d.verbs.predict import predict as predict
    from mergekit3d.verbs.preprocess import preprocess as preprocess
    from mergekit3d.verbs.report import report as report
    from mergekit3d.verbs.run import run as run
    from mergekit3d.verbs.schema import schema as schema
    from mergekit3d.verbs.train import train as train
    from mergekit3d.verbs.verify import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "MergeKit3DError": "mergekit3d.errors",
    "Options": "mergekit3d.options",
    "adapt": "mergekit3d.verbs.adapt",
    "compare": "mergekit3d.verbs.compare",
    "convert": "mergekit3d.verbs.convert",
    "demo": "mergekit3d.verbs.demo",
    "evaluate": "mergekit3d.verbs.evaluate",
    "finetune": "mergekit3d.verbs.finetune",
    "fisher": "mergekit3d.verbs.fisher",
    "fisher_sources": "mergekit3d.verbs.fisher",
    "forgetting": "mergekit3d.verbs.forgetting",
    "fuse": "mergekit3d.verbs.fuse",
    "inspect": "mergekit3d.verbs.inspect",
    "methods": "mergekit3d.verbs.methods",
    "phantom": "mergekit3d.datasets.phantom",
    "plot": "mergekit3d.verbs.plot",
    "predict": "mergekit3d.verbs.predict",
    "preprocess": "mergekit3d.verbs.preprocess",
    "report": "mergekit3d.verbs.report",
    "run": "mergekit3d.verbs.run",
    "schema": "mergekit3d.verbs.schema",
    "train": "mergekit3d.verbs.train",
    "verify": "mergekit3d.verbs.verify",
}
__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604  the names are those of _HOMES


def __getattr__(name: str) -> Any:
    """The public function or class called `name`, imported on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
