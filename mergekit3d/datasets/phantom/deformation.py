"""Smooth random deformations: where each point of a subject comes from, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergekit3d.datasets.phantom.fields import Array, Axes, SmoothField, draw_field


@dataclass(frozen=True, eq=False)
class Deformation:
    """A map from the points of a subject to the points of the anatomy that it is made from.

    Args:
        linear: (3, 3) float32: small rotation and scaling, and the flip where there is one.
        displacements: pairs of an amplitude in mm and the fields along x, y, z.
    """

    linear: Array
    displacements: tuple[tuple[float, tuple[SmoothField, SmoothField, SmoothField]], ...]

    def sources(self, axes: Axes) -> tuple[Array, Array, Array]:
        """Where the points of a grid come from.

        Args:
            axes: coordinates along x, y, z in mm, as offsets from the centre of the subject.

        Returns:
            x, y, z of the sources in mm, each (X, Y, Z) float32.
        """
        x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        found = []
        for row in range(3):
            source = self.linear[row, 0] * x + self.linear[row, 1] * y + self.linear[row, 2] * z
            for amplitude_mm, fields in self.displacements:
                source += np.float32(amplitude_mm) * fields[row].on(axes)
            found.append(source)
        return found[0], found[1], found[2]


def draw_deformation(
    generator: np.random.Generator,
    *,
    rotation_deg: float,
    scale: float,
    displacements_mm: tuple[tuple[float, float], ...],
    flip: bool = False,
) -> tuple[Deformation, bool]:
    """Draw a deformation, and whether it exchanges left and right.

    Args:
        generator: the source of randomness.
        rotation_deg: standard deviation of the rotation about each axis.
        scale: standard deviation of the logarithm of the scaling along each axis.
        displacements_mm: pairs of an amplitude (standard deviation) and a distance of controls.
        flip: exchange left and right half of the time.
    """
    about_x, about_y, about_z = np.deg2rad(rotation_deg) * generator.standard_normal(3)
    rotation = _turn(0, about_x) @ _turn(1, about_y) @ _turn(2, about_z)
    linear = rotation @ np.diag(np.exp(scale * np.clip(generator.standard_normal(3), -2, 2)))
    mirrored = flip and bool(generator.random() < 0.5)
    if mirrored:
        linear = np.diag([-1.0, 1.0, 1.0]) @ linear
    drawn = tuple(
        (amplitude_mm, (draw_field(generator, knot_mm), draw_field(generator, knot_mm), draw_field(generator, knot_mm)))
        for amplitude_mm, knot_mm in displacements_mm
    )
    return Deformation(linear.astype(np.float32), drawn), mirrored


def _turn(axis: int, angle: float) -> Array:
    turn = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn
