import numpy as np

from mergekit3d.datasets.augmentation import augmented, flips

IMAGE = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)


def test_flips_move_image_and_target_alike():
    """Every drawn combination of axes comes up, the target follows the image, and the arguments stay as they are."""
    seen = set()
    for seed in range(64):
        image, target = flips()(IMAGE, IMAGE[0], np.random.default_rng(seed))
        assert image[0].tolist() == target.tolist()
        seen.add(float(image[0, 0, 0, 0]))

    assert 8 == len(seen)
    assert 0 == IMAGE[0, 0, 0, 0]


def test_only_the_named_axes_are_flipped():
    """With one axis named, the others keep their order, also for a target with channels."""
    for seed in range(8):
        image, target = flips([1])(IMAGE, IMAGE[:, :1], np.random.default_rng(seed))
        assert image.tolist() in (IMAGE.tolist(), IMAGE[:, :, ::-1].tolist())
        assert target[0].tolist() in (IMAGE[0, :1].tolist(), IMAGE[0, :1, ::-1].tolist())


def test_transforms_follow_one_another():
    """Transforms are applied in order, with one generator; none leave the sample as it is."""

    def add(amount):
        return lambda image, target, rng: (image * 2 + amount + 0 * rng.random(), target)

    image, target = augmented(IMAGE, IMAGE[0], [add(1), add(2)], np.random.default_rng(0))

    assert (IMAGE * 4 + 4).tolist() == image.tolist()
    assert IMAGE[0].tolist() == target.tolist()
    assert augmented(IMAGE, IMAGE[0], [], np.random.default_rng(0))[0] is IMAGE
