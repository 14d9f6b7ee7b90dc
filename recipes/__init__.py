"""The recipes that mergekit3d ships, installed as ``mergekit3d_recipes``: read them, copy them, start from them."""
