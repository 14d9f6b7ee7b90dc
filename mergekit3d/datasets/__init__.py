"""Data sets: subjects found in folders as they come, their labels, splits, preparation and batches."""

from mergekit3d.datasets.find import find_dataset, select
from mergekit3d.datasets.subject import Dataset, Subject

__all__ = ["Dataset", "Subject", "find_dataset", "select"]
