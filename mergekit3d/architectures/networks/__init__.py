"""The networks that are written here; they import torch, their descriptions beside this folder do not."""
