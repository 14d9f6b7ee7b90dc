"""Generated data sets: brains and tumours with the images of them, in real layouts."""

from mergekit3d.datasets.phantom.generation import PhantomResult, PhantomSubject, phantom

__all__ = ["PhantomResult", "PhantomSubject", "phantom"]
