"""The 3D U-Net of Isensee et al. 2017, the network of the T-IMM paper.

Source: Isensee, Kickingereder, Wick, Bendszus, Maier-Hein, "Brain Tumor Segmentation and Radiomics Survival Prediction:
Contribution to the BRATS 2017 Challenge", BrainLes 2017. What differs from the original Keras code: the leaky slope is an
argument (0.3 there, 0.01 here by default), the norm divides by sqrt(var + 1e-5) in place of (std + 1e-3), and the network
returns logits: the sigmoid belongs to the loss and to prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBlock(nn.Module):
    """Convolution, affine instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, leaky_slope: float) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.InstanceNorm3d(out_channels, affine=True)
        self.leaky_slope = leaky_slope

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, X, Y, Z) to (batch, out_channels, X / stride, ...)."""
        return functional.leaky_relu(self.norm(self.conv(x)), self.leaky_slope, inplace=True)


class EncoderLevel(nn.Module):
    """Input convolution, then a context module (conv, spatial dropout, conv) added to its input."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dropout: float, leaky_slope: float) -> None:
        super().__init__()
        self.input = ConvBlock(in_channels, out_channels, stride=stride, leaky_slope=leaky_slope)
        self.context = nn.ModuleList([ConvBlock(out_channels, out_channels, leaky_slope=leaky_slope) for _ in range(2)])
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, X, Y, Z) to (batch, out_channels, X / stride, ...)."""
        x = self.input(x)
        residual: Tensor = self.context[1](self.dropout(self.context[0](x)))
        return x + residual


class DecoderLevel(nn.Module):
    """Nearest upsampling x2 and conv 3, concatenation with the encoder's output, conv 3, conv 1."""

    def __init__(self, filters: int, *, leaky_slope: float) -> None:
        super().__init__()
        self.upsample = ConvBlock(2 * filters, filters, leaky_slope=leaky_slope)
        self.localization = nn.ModuleList(
            [
                ConvBlock(2 * filters, filters, leaky_slope=leaky_slope),
                ConvBlock(filters, filters, kernel=1, leaky_slope=leaky_slope),
            ]
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(batch, 2 filters, X / 2, ...) and the encoder's (batch, filters, X, ...) to (batch, filters, X, ...)."""
        x = self.upsample(functional.interpolate(x, scale_factor=2, mode="nearest"))
        x = torch.cat([skip, x], dim=1)
        localized: Tensor = self.localization[1](self.localization[0](x))
        return localized


class Isensee2017(nn.Module):
    """3D U-Net with residual context modules and deep supervision.

    Parameter names, in the order of execution: ``encoder.<level>.input``, ``encoder.<level>.context.<0|1>`` for levels 0
    (finest) to depth - 1; ``decoder.<level>.upsample``, ``decoder.<level>.localization.<0|1>`` from the coarsest to 0;
    ``segmentation.<level>`` for the finest levels. Each block holds ``conv`` and ``norm``; a head is one convolution.

    Args:
        in_channels: modalities.
        out_channels: regions or classes; one logit each.
        base_filters: filters of the finest level, doubled a level.
        depth: resolution levels; inputs must be divisible by 2 ** (depth - 1) along each axis.
        segmentation_levels: decoder levels with a head, finest first.
        dropout: probability of the spatial dropout in each context module.
        leaky_slope: negative slope of the leaky ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        base_filters: int = 16,
        depth: int = 5,
        segmentation_levels: int = 3,
        dropout: float = 0.3,
        leaky_slope: float = 0.01,
    ) -> None:
        super().__init__()
        filters = [base_filters * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            [
                EncoderLevel(
                    in_channels if level == 0 else filters[level - 1],
                    filters[level],
                    stride=1 if level == 0 else 2,
                    dropout=dropout,
                    leaky_slope=leaky_slope,
                )
                for level in range(depth)
            ]
        )
        self.decoder = nn.ModuleDict(
            {str(level): DecoderLevel(filters[level], leaky_slope=leaky_slope) for level in reversed(range(depth - 1))}
        )
        self.segmentation = nn.ModuleList(
            [nn.Conv3d(filters[level], out_channels, 1) for level in range(min(segmentation_levels, depth - 1))]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: images, (batch, in_channels, X, Y, Z).

        Returns:
            Logits, (batch, out_channels, X, Y, Z).
        """
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        logits: Tensor | None = None
        for name, decoder in self.decoder.items():
            level_index = int(name)
            x = decoder(x, skips[level_index])
            if level_index < len(self.segmentation):
                head = self.segmentation[level_index](x)
                logits = head if logits is None else head + functional.interpolate(logits, scale_factor=2, mode="nearest")
        assert logits is not None
        return logits
