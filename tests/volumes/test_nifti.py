import gzip
import os
import re
import struct

import nibabel
import numpy as np
import pytest

from mergekit3d.errors import InputError, OutputError, UsageError
from mergekit3d.volumes.nifti import Channel, Grid, read_channels, read_grid, read_image, read_labels, write_volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def image(tmp_path, data=None, *, name="a.nii.gz", affine=AFFINE, qform=None, codes=(0, 1), dtype=np.float32):
    data = np.arange(24).reshape(2, 3, 4).astype(dtype) if data is None else data
    file = nibabel.Nifti1Image(data, affine)
    file.set_sform(affine, codes[1])
    file.set_qform(affine if qform is None else qform, codes[0])
    nibabel.save(file, tmp_path / name)
    return tmp_path / name


def patched(path, offset, content):
    """The same file with other bytes at an offset of its uncompressed content."""
    packed = path.suffix == ".gz"
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    return path


def refusal(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == 65
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "with space \u00e4\u5b57.nii.gz", "misnamed.gz.nii"])
def test_image_reads_as_float32(tmp_path, name):
    """Values, spacing and grid of an integer image, packed or not, whatever its name."""
    path = image(tmp_path, dtype=np.int16, name=name)

    volume = read_image(path)

    assert np.dtype(np.float32) == volume.data.dtype
    assert np.arange(24).reshape(2, 3, 4).tolist() == volume.data.tolist()
    assert (1.0, 2.0, 3.0) == volume.spacing_mm
    assert (2, 3, 4) == volume.native.shape == read_grid(path).shape
    assert AFFINE.tolist() == volume.native.affine.tolist() == read_grid(path).affine.tolist()


def test_content_decides_whether_a_file_is_packed(tmp_path):
    """A gzip file under the name .nii, and a plain one under .nii.gz, both load."""
    packed, plain = image(tmp_path), image(tmp_path, name="b.nii")
    packed.rename(tmp_path / "c.nii")
    plain.rename(tmp_path / "d.nii.gz")

    assert read_image(tmp_path / "c.nii").data.tolist() == read_image(tmp_path / "d.nii.gz").data.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.int64])
def test_every_number_type_loads(tmp_path, dtype):
    """Labels stored in any real type read as int32."""
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(dtype), AFFINE, dtype=dtype), path)

    assert np.dtype(np.int32) == read_labels(path).data.dtype
    assert list(range(24)) == read_labels(path).data.ravel().tolist()


def test_scaled_image(tmp_path):
    """Slope and intercept of the header are applied."""
    path = patched(image(tmp_path, dtype=np.int16), 112, struct.pack("<2f", 0.5, 10))

    assert (np.arange(24) * 0.5 + 10).tolist() == read_image(path).data.ravel().tolist()


def test_big_endian_nifti2_and_single_4d_volume_load(tmp_path):
    """A big-endian file, a NIfTI-2 file and a 4D file with one volume are 3D images like others."""
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">f4"))
    nibabel.save(nibabel.Nifti1Image(data, AFFINE, header), tmp_path / "big.nii")
    nibabel.save(nibabel.Nifti2Image(data, AFFINE), tmp_path / "two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(data[..., None], AFFINE), tmp_path / "four.nii.gz")

    for name in ("big.nii", "two.nii.gz", "four.nii.gz"):
        assert data.tolist() == read_image(tmp_path / name).data.tolist()


def test_header_extensions_are_skipped(tmp_path):
    """A file with header extensions loads, and what is written from it holds nothing of them, nor of the header's texts."""
    file = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"CANARY" * 20))
    file.header["descrip"] = b"CANARY"
    nibabel.save(file, tmp_path / "a.nii.gz")

    volume = read_labels(tmp_path / "a.nii.gz")
    write_volume(tmp_path / "b.nii", volume.data, native=volume.native)

    assert list(range(24)) == volume.data.ravel().tolist()
    assert b"CANARY" not in (tmp_path / "b.nii").read_bytes()


def test_qform_only_and_no_form_load(tmp_path):
    """The affine comes from the qform where there is no sform, and from the voxel sizes where there is neither."""
    turned = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])

    with_qform = read_grid(image(tmp_path, affine=turned, codes=(1, 0)))
    with_none = read_grid(image(tmp_path, codes=(0, 0)))

    np.testing.assert_allclose(turned, with_qform.affine, atol=1e-6)
    assert [1.0, 2.0, 3.0] == np.abs(np.diag(with_none.affine))[:3].tolist()


def test_qform_and_sform_that_contradict_are_refused(tmp_path):
    """Two different affines with their codes set are an error; a slight difference, or an sform to a template space, is not."""
    shifted, nudged = AFFINE.copy(), AFFINE.copy()
    shifted[0, 3] = 4
    nudged[0, 3] = 0.4

    assert (
        "cannot read the volume: FILE: wanted qform and sform that agree, found corners 4 mm apart; "
        "correct the wrong one, or set its code to 0"
    ) == refusal(read_image, image(tmp_path, qform=shifted, codes=(1, 2)))
    assert AFFINE.tolist() == read_image(image(tmp_path, qform=nudged, codes=(1, 1))).affine.tolist()
    assert AFFINE.tolist() == read_image(image(tmp_path, qform=shifted, codes=(1, 4))).affine.tolist()
    assert AFFINE.tolist() == read_image(image(tmp_path, qform=shifted, codes=(0, 2))).affine.tolist()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([0, 0, 0, 0], "wanted an affine with three independent axes, found a singular one"),
        ([1, 2, 0, 0], "wanted an affine with three independent axes, found a singular one"),
        ([np.nan, 0, 0, 0], "wanted a finite affine, found NaN or Inf in it"),
        ([1, 0, 0, np.inf], "wanted a finite affine, found NaN or Inf in it"),
    ],
)
def test_bad_affine_is_refused(tmp_path, row, text):
    """A singular affine, or one with NaN or Inf, is an error for every reader."""
    affine = np.array([[1.0, 2.0, 0, 0], [2.0, 4.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]]) if row == [1, 2, 0, 0] else AFFINE
    path = patched(image(tmp_path, affine=AFFINE), 280, struct.pack("<12f", *row, *affine[1], *affine[2]))

    for read in (read_image, read_labels, read_grid):
        assert f"cannot read the volume: FILE: {text}" == refusal(read, path)


def test_nan_and_inf_are_counted(tmp_path):
    """An image or label map with NaN or Inf is refused with their number."""
    data = np.ones((2, 3, 4), dtype=np.float32)
    data[0, 0] = [np.nan, np.inf, -np.inf, 1]
    path = image(tmp_path, data)

    text = "cannot read the volume: FILE: wanted finite voxels, found 3 of 24 are NaN, Inf or beyond float32"
    assert text == refusal(read_image, path) == refusal(read_labels, path)
    assert "1 of 24" in refusal(read_image, image(tmp_path, np.where(np.arange(24).reshape(2, 3, 4) == 5, 1e300, 0.0)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.9999, "wanted whole numbers as labels, found 1 voxels with others, such as 2.9999"),
        (-1, "wanted labels from 0 to 32767, found label -1"),
        (40000, "wanted labels from 0 to 32767, found label 40000"),
    ],
)
def test_bad_labels_are_refused(tmp_path, value, text):
    """Labels are whole numbers from 0 to 32767."""
    data = np.zeros((2, 3, 4))
    data[1, 1, 1] = value

    assert f"cannot read the volume: FILE: {text}" == refusal(read_labels, image(tmp_path, data))
    if float(value).is_integer():
        assert f"cannot read the volume: FILE: {text}" == refusal(read_labels, image(tmp_path, data.astype(np.int32)))


def test_several_volumes_are_refused(tmp_path):
    """A 4D file with two volumes is no image."""
    text = refusal(read_image, image(tmp_path, np.zeros((2, 3, 4, 2), dtype=np.float32)))

    assert "cannot read the volume: FILE: wanted one 3D volume, found 2x3x4x2; split it into one file a volume" == text


def test_flat_and_complex_files_are_refused(tmp_path):
    """Two axes, or complex numbers, are no volume."""
    assert "wanted three axes, found header sizes [2, 3, 4]" in refusal(read_image, image(tmp_path, np.zeros((3, 4), dtype=np.float32)))
    assert "found voxels of type complex64" in refusal(read_image, image(tmp_path, np.zeros((3, 4, 5), dtype=np.complex64)))


def test_what_is_no_file_is_refused(tmp_path):
    """A missing file, a folder, a pipe (without waiting for it), a broken link and an empty file are told apart."""
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.nii").touch()

    assert "no such file: FILE" == refusal(read_image, tmp_path / "missing.nii")
    assert "no such file: FILE" == refusal(read_image, tmp_path / "link.nii")
    assert "cannot read the volume: FILE: wanted a regular file, found a folder" == refusal(read_image, tmp_path)
    assert "cannot read the volume: FILE: wanted a regular file, found a pipe or device" == refusal(read_image, tmp_path / "pipe.nii")
    assert "cannot read the volume: FILE: found an empty file" == refusal(read_image, tmp_path / "empty.nii")


def test_other_content_is_refused(tmp_path):
    """Text, a header without voxels, and random bytes behind a gzip signature are no NIfTI files."""
    (tmp_path / "text.nii").write_text("not a volume " * 100)
    (tmp_path / "noise.nii.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(200)))
    pair = patched(image(tmp_path, name="pair.nii"), 344, b"ni1\0")

    assert "wanted a NIfTI file (.nii or .nii.gz), found other content" in refusal(read_image, tmp_path / "text.nii")
    assert "wanted a sound gzip stream" in refusal(read_image, tmp_path / "noise.nii.gz")
    assert "wanted header and voxels in one NIfTI file" in refusal(read_image, pair)


def test_no_prefix_of_a_file_loads(tmp_path):
    """A file cut anywhere is refused, packed or not."""
    for name in ("a.nii", "a.nii.gz"):
        content = image(tmp_path, name=name).read_bytes()
        for length in [*range(1, len(content), 7), len(content) - 1]:
            (tmp_path / f"cut-{name}").write_bytes(content[:length])
            refusal(read_image, tmp_path / f"cut-{name}")


def test_no_flipped_bit_of_a_packed_file_changes_a_voxel(tmp_path):
    """With any one bit of a .nii.gz flipped, the file is refused or loads with the same values and grid."""
    rng = np.random.default_rng(0)
    path = image(tmp_path, rng.integers(0, 9, (4, 4, 4)).astype(np.int16))
    content, original = path.read_bytes(), read_labels(path)
    refused = 0
    for position in range(len(content)):
        mutant = bytearray(content)
        mutant[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutant)
        try:
            volume = read_labels(path)
        except InputError:
            refused += 1
        else:
            assert original.data.tolist() == volume.data.tolist()
            assert original.affine.tolist() == volume.affine.tolist()
    assert refused > 0.9 * (len(content) - 30)


@pytest.mark.parametrize(
    ("offset", "content", "text"),
    [
        (40, struct.pack("<4h", 3, 30000, 30000, 30000), "wanted at most 1073741824 voxels"),
        (40, struct.pack("<4h", 3, 1000, 1000, 1000), "found a file too short for them"),
        (40, struct.pack("<4h", 3, 20, 20, 20), "found one that ends early"),
        (40, struct.pack("<4h", 3, -2, 3, 4), "wanted three axes"),
        (40, struct.pack("<1h", 0), "wanted three axes"),
        (70, struct.pack("<h", 999), "wanted a known voxel type, found code 999"),
        (108, struct.pack("<f", 1e12), "wanted voxels that start at byte"),
        (108, struct.pack("<f", float("nan")), "cannot read the volume"),
        (108, struct.pack("<f", float("inf")), "cannot read the volume"),
        (112, struct.pack("<2f", 1, float("inf")), "wanted a finite intensity scale"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, offset, content, text):
    """A header that asks for more than the file holds, or for nonsense, is refused before anything is allocated."""
    assert text in refusal(read_image, patched(image(tmp_path), offset, content))


def test_a_packed_bomb_is_refused(tmp_path):
    """Megabytes behind the voxels are not unpacked to their end."""
    raw = gzip.decompress(image(tmp_path).read_bytes()) + bytes(3 * 2**20)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(raw))

    assert "wanted 96 bytes of voxels, found many more" in refusal(read_image, tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (np.array([0, 255]), np.uint8),
        (np.array([0, 256]), np.int16),
        (np.array([-1, 2]), np.int16),
        (np.array([0, 70000]), np.int32),
        (np.array([True, False]), np.uint8),
        (np.array([0.5, 1.5]), np.float32),
        (np.array([0.5, 1.5], dtype=np.float16), np.float32),
    ],
)
def test_written_type_is_the_smallest(tmp_path, data, dtype):
    """Whole numbers take the smallest type that holds them, others float32; values survive."""
    write_volume(tmp_path / "a.nii.gz", data.reshape(2, 1, 1), native=Grid((2, 1, 1), AFFINE))

    file = nibabel.load(tmp_path / "a.nii.gz")
    assert np.dtype(dtype) == file.get_data_dtype()
    assert data.tolist() == np.asarray(file.dataobj).ravel().tolist()


def test_written_header_is_fresh_and_the_bytes_repeat(tmp_path):
    """Affine as qform and sform, voxel sizes, millimetres, no texts; the same content gives the same bytes under any name."""
    turned = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    grid = Grid((3, 2, 4), turned)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, np.arange(24).reshape(2, 3, 4), native=grid)

    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert ("mm", "unknown") == header.get_xyzt_units()
    assert (1.0, 2.0, 3.0) == tuple(float(size) for size in header.get_zooms())
    np.testing.assert_allclose(turned, header.get_qform(), atol=1e-6)
    assert turned.tolist() == header.get_sform().tolist()
    assert b"" == header["descrip"].item() == header["db_name"].item()


def test_sheared_grid_is_written_without_a_qform(tmp_path):
    """A qform cannot hold a shear, so none is written, and the file reads back."""
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    write_volume(tmp_path / "a.nii", np.zeros((2, 3, 4)), native=Grid((2, 3, 4), sheared))

    assert 0 == int(nibabel.load(tmp_path / "a.nii").header["qform_code"])
    assert sheared.tolist() == read_image(tmp_path / "a.nii").affine.tolist()


def test_write_refuses_other_names_and_places(tmp_path):
    """Another suffix is a usage error, an unwritable place an output error, and an array of another grid a bug."""
    grid = Grid((2, 3, 4), AFFINE)
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=re.escape("wanted a name that ends in .nii or .nii.gz")):
        write_volume(tmp_path / "a.mgz", np.zeros((2, 3, 4)), native=grid)
    with pytest.raises(OutputError, match="cannot write"):
        write_volume(tmp_path / "file" / "a.nii", np.zeros((2, 3, 4)), native=grid)
    with pytest.raises(ValueError, match="do not lie on the grid"):
        write_volume(tmp_path / "a.nii", np.zeros((4, 3, 2)), native=grid)
    with pytest.raises(ValueError, match="beyond 32 bits"):
        write_volume(tmp_path / "a.nii", np.full((2, 3, 4), 2**40), native=grid)
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


def four(tmp_path, name="four.nii.gz", count=3):
    """A 4D file whose volume i holds 100 i and more."""
    data = np.stack([np.arange(24).reshape(2, 3, 4) + 100 * index for index in range(count)], axis=-1)
    return image(tmp_path, data.astype(np.int16), name=name)


@pytest.mark.parametrize("name", ["four.nii", "four.nii.gz"])
def test_volumes_of_a_4d_file(tmp_path, name):
    """Each volume by its index, several in the order asked for, packed or not."""
    path = four(tmp_path, name)

    assert 200 == read_image(path, channel=Channel(2, 3)).data.min()
    assert [223, 23] == [volume.data.max() for volume in read_channels(path, [2, 0], 3)]
    assert (2, 3, 4) == read_grid(path, channel=Channel(0, 3)).shape


@pytest.mark.parametrize("name", ["four.nii", "four.nii.gz"])
def test_damage_behind_the_volume_that_is_read(tmp_path, name):
    """A 4D file that ends early is refused whichever of its volumes is asked for."""
    path = four(tmp_path, name)
    content = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    path.write_bytes(gzip.compress(content[:-1]) if name.endswith("gz") else content[:-1])

    for index in range(3):
        said = refusal(lambda path, index=index: read_image(path, channel=Channel(index, 3)), path)
        assert "wanted a whole file, found one that ends early" in said


def test_number_of_volumes_is_checked(tmp_path):
    """A file that holds more or fewer volumes than the data set names is refused; not-finite voxels are told by the volume's name."""
    path = four(tmp_path)

    said = refusal(lambda path: read_image(path, channel=Channel(0, 4)), path)
    assert "cannot read the volume: FILE: wanted 4 volumes, one a modality, found 2x3x4x3; correct the modalities of the data set" == said
    assert "found 2x3x4" in refusal(lambda path: read_grid(path, channel=Channel(0, 2)), image(tmp_path))
    broken = image(tmp_path, np.stack([np.zeros((2, 3, 4)), np.full((2, 3, 4), np.nan)], axis=-1).astype(np.float32), name="nan.nii")
    assert 0 == read_image(broken, channel=Channel(0, 2)).data.max()
    with pytest.raises(InputError, match="subject 1, t2: wanted finite voxels"):
        read_channels(broken, [1, 0], 2, called=["subject 1, t2", "subject 1, t1"])
