"""Inputs and outputs of a network that nothing but its tensors tell."""

from __future__ import annotations

from mergekit3d.architectures.ends import channels_of


def test_head_is_told_by_its_name_wherever_it_stands():
    """DynUNet's head stands before the decoder in the state dict."""
    shapes = {
        "input_block.conv1.conv.weight": (8, 4, 3, 3, 3),
        "output_block.conv.conv.weight": (3, 8, 1, 1, 1),
        "output_block.conv.conv.bias": (3,),
        "upsamples.0.transp_conv.conv.weight": (16, 8, 2, 2, 2),
    }

    assert (4, 3) == channels_of(shapes)


def test_without_a_known_head_the_last_layer_is_it():
    """Of a transposed convolution, the bias tells the outputs."""
    shapes = {"0.weight": (8, 2, 3, 3, 3), "1.weight": (8, 5, 2, 2, 2), "1.bias": (5,)}

    assert (2, 5) == channels_of(shapes)


def test_no_layer_with_a_weight():
    """One and one, as good as any."""
    assert (1, 1) == channels_of({"scale": (3,)})
