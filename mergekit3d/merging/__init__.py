"""The arithmetic of merging: pure functions on arrays (numpy or torch), no files, no networks."""
