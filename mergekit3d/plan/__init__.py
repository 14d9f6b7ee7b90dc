"""From a recipe to what will be done: files opened and checked, every problem told before the first byte of work."""
