"""Volumes: NIfTI files to and from arrays in RAS+ axis order, in millimetres; resampling and normalisation."""
