"""Preprocessing: bias field, foreground crop, voxel size and intensities of whole data sets, subject by subject."""
