"""Fusing in one pass: the same weights as in memory, sealed; and what a pass finds in its sources."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc

import numpy as np
import pytest
import torch

from mergekit3d import fuse
from mergekit3d.checkpoints import CHECKPOINT, Metadata, open_checkpoint
from mergekit3d.engine import stream, workers
from mergekit3d.engine.stream import write_fused
from mergekit3d.engine.values import tensor_values
from mergekit3d.errors import InputError, OutputError, Problems
from mergekit3d.options import Options
from mergekit3d.plan.fusion import plan_fusion
from mergekit3d.progress import Silent
from tests.builders import fusing, metadata_of, random_state, save, save_fisher, save_source, spec_of, two_sources

TARGET = "target: {data: brats, modalities: [t1, t1ce, t2, flair], regions: brats}"
METHODS = {
    "imm": "{method: imm, ratios: {m1: 0.3, m2: 0.7}}",
    "mean-imm": "{method: mean-imm}",
    "linear along the depth": "{method: linear, ratios: {m1: [1, 0, 0.5], m2: [0, 1, 0.5]}}",
    "task-arithmetic": "{method: task-arithmetic, base: base.safetensors, ratios: {m1: 1, m2: -0.5}}",
    "ties": "{method: ties, base: base.safetensors, parameters: {density: 0.3}}",
    "dare": "{method: dare, base: m1, parameters: {drop: 0.5}}",
    "slerp": "{method: slerp, ratios: {m1: 0.2, m2: 0.8}}",
    "slerp all the way": "{method: slerp, ratios: {m1: 0, m2: 1}}",
    "half": "{method: imm, dtype: float16}",
}


@pytest.fixture
def folder(tmp_path):
    """A base and two sources near it, with their Fisher diagonals."""
    base = save_source(tmp_path / "base.safetensors", 0)
    for number in (1, 2):
        moved = {name: values + np.float32(0.3) * random_state(spec_of(), number)[name] for name, values in base.items()}
        save_source(tmp_path / f"m{number}.safetensors", state=moved)
        save_fisher(tmp_path / f"m{number}.safetensors", seed=10 + number)
    return tmp_path


def describe(digest_of):
    return Metadata(kind=CHECKPOINT, method="test")


def written(loaded, name="out.safetensors"):
    """The checkpoint that a pass writes, its plan, and what the pass returned."""
    plan = plan_fusion(loaded, verify=False)
    streamed = write_fused(plan, loaded.out.parent / name, describe)
    return open_checkpoint(loaded.out.parent / name), plan, streamed


@pytest.mark.parametrize("rest", ["", TARGET], ids=["sources", "target"])
@pytest.mark.parametrize("merge", METHODS.values(), ids=METHODS)
def test_writes_what_is_computed_in_memory(folder, merge, rest, monkeypatch):
    """Bit for bit, whatever the pieces; and the seal that was made on the way holds."""
    in_memory = tensor_values(plan_fusion(fusing(folder, merge, rest)))
    monkeypatch.setattr(stream, "PIECE_ENTRIES", 8)
    checkpoint, plan, _ = written(fusing(folder, merge, rest))

    assert [tensor.entry for tensor in plan.tensors] == list(checkpoint.entries.values())
    for tensor in plan.tensors:
        values = in_memory(tensor.entry)
        with np.errstate(over="ignore"):
            expected = values.astype(checkpoint.read(tensor.entry.name).dtype)
        assert expected.tobytes() == checkpoint.read(tensor.entry.name).tobytes(), tensor.entry.name


@pytest.mark.parametrize("with_torch", [False, True], ids=["processes", "threads"])
def test_one_worker_or_many_write_the_same_bytes(folder, monkeypatch, with_torch):
    """In the order of the first source, whichever tensor is done first, and however the work is shared."""
    loaded = fusing(folder, METHODS["imm"])
    monkeypatch.setattr(workers, "can_fork", lambda: not with_torch)
    written(loaded, "many.safetensors")
    monkeypatch.setattr(workers, "MOST_WORKERS", 1)
    written(loaded, "one.safetensors")

    assert (folder / "many.safetensors").read_bytes() == (folder / "one.safetensors").read_bytes()
    assert list(open_checkpoint(folder / "m1.safetensors").entries) == list(open_checkpoint(folder / "one.safetensors").entries)


def test_dare_is_seeded(folder):
    """The same seed gives the same bytes, another one others; about the share asked for is dropped."""
    contents = []
    for seed in (1, 1, 2):
        loaded = fusing(
            folder, "{method: dare, base: base.safetensors, parameters: {drop: 0.75, scale: 1.0}, ratios: {m1: 1, m2: 0}}", f"seed: {seed}"
        )
        checkpoint, _, _ = written(loaded)
        contents.append({name: checkpoint.read(name).copy() for name in checkpoint.entries if ".conv.weight" in name})
    base, first = open_checkpoint(folder / "base.safetensors"), open_checkpoint(folder / "m1.safetensors")
    kept = np.concatenate([(values != base.read(name)).ravel() for name, values in contents[0].items()])
    expected = np.concatenate([(base.read(name) + 4 * (first.read(name) - base.read(name))).ravel() for name in contents[0]])
    merged = np.concatenate([values.ravel() for values in contents[0].values()])

    assert all(values.tobytes() == contents[1][name].tobytes() for name, values in contents[0].items())
    assert any(values.tobytes() != contents[2][name].tobytes() for name, values in contents[0].items())
    assert abs(kept.mean() - 0.25) < 0.03
    np.testing.assert_allclose(expected[kept], merged[kept], rtol=1e-5, atol=1e-5)


def test_figures_on_a_fused_tensor(tmp_path):
    """Distances, cosines, shares after the Fisher and the share of unknown entries, by hand."""
    save(tmp_path / "m1.safetensors", {"a.weight": np.array([[3.0, 4.0]], np.float32), "z.weight": np.ones((1, 1), np.float32)})
    save(tmp_path / "m2.safetensors", {"a.weight": np.array([[5.0, 0.0]], np.float32), "z.weight": np.ones((1, 1), np.float32)})
    for name, fisher in (("m1", [[3.0, 0.0]]), ("m2", [[1.0, 0.0]])):
        save_fisher(
            tmp_path / f"{name}.safetensors", values={"a.weight": np.array(fisher, np.float32), "z.weight": np.ones((1, 1), np.float32)}
        )
    _, _, streamed = written(fusing(tmp_path))

    # fused: (3 * 3 + 1 * 5) / 4 = 3.5, and the average 2 where nothing is known
    content = streamed.figures["a.weight"].as_json(["m1", "m2"])
    assert content["distance"] == {"m1": pytest.approx(np.hypot(0.5, 2) / 5, rel=1e-5), "m2": pytest.approx(np.hypot(1.5, 2) / 5, rel=1e-5)}
    assert content["cosine"] == {"m1": 1.0, "m2": pytest.approx(0.6)}
    assert content["share"] == {"m1": (0.75 + 0.5) / 2, "m2": (0.25 + 0.5) / 2}
    assert content["no_information"] == 0.5


def refused(loaded, kind):
    """The lines that a pass is answered with; the previous output stays as it is, and nothing else is left."""
    out = loaded.out.parent / "out.safetensors"
    out.write_bytes(b"old")
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(kind) as caught:
        written(loaded)
    assert b"old" == out.read_bytes()
    assert before == sorted(path.name for path in out.parent.iterdir())
    return str(caught.value).splitlines()


def test_everything_wrong_with_the_values_is_told_at_once(folder):
    """Of all files, whichever tensor was read first."""
    state = random_state(spec_of(), 5)
    state["encoder.1.input.conv.weight"][0, 0, 0, 0, :2] = np.nan, np.inf
    state["decoder.0.upsample.conv.bias"][0] = np.nan
    save_source(folder / "m1.safetensors", state=state)
    content = bytearray((folder / "m2.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "m2.safetensors").write_bytes(content)
    fisher = {name: np.ones_like(values) for name, values in random_state(spec_of(), 5).items()}
    fisher["encoder.0.input.conv.weight"][0, 0, 0, 0, 0] = -1
    save_fisher(folder / "m1.safetensors", values=fisher)
    lines = refused(fusing(folder), Problems)

    assert len(lines) == 4
    assert lines[0].startswith(
        f"values that are not finite: {folder}/m1.safetensors: found 2 NaN or Inf in encoder.1.input.conv.weight and 1 more"
    )
    assert lines[1].startswith(f"the file is damaged: {folder}/m2.safetensors")
    assert lines[2].startswith(f"a Fisher diagonal cannot be negative: {folder}/m1.fisher.safetensors: encoder.0.input.conv.weight")
    assert lines[3].startswith(f"the Fisher diagonal is of other weights: {folder}/m2.fisher.safetensors")


def test_damage_in_a_tensor_that_is_not_needed_is_found(folder):
    """The seal covers the whole file, also the heads that the target replaces."""
    path = folder / "m2.fisher.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)

    assert [f"the file is damaged: {path}"] == [line.split(": found")[0] for line in refused(fusing(folder, rest=TARGET), InputError)]


def test_fisher_of_other_weights_without_a_seal(tmp_path):
    """A bare state dict says nothing of its digest: the pass finds it out."""
    for number in (1, 2):
        torch.save({name: torch.from_numpy(values) for name, values in random_state(spec_of(), number).items()}, tmp_path / f"m{number}.pt")
        save_fisher(tmp_path / f"m{number}.pt", of="0" * 64 if number == 2 else None)

    assert ["the Fisher diagonal is of other weights"] == [
        line.split(":")[0] for line in refused(fusing(tmp_path, suffix=".pt"), InputError)
    ]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_file_that_is_cut_while_it_is_read(tmp_path, suffix):
    """An error in place of a crash of the process, whether all of it is fused or one tensor looked at."""
    two_sources(tmp_path, suffix)
    plan = plan_fusion(fusing(tmp_path, suffix=suffix), verify=False)
    opened = open_checkpoint(tmp_path / f"m2{suffix}")
    os.truncate(tmp_path / f"m2{suffix}", 4000)
    with pytest.raises(InputError, match=rf"the file was cut while it was read: .*m2{suffix}"):
        write_fused(plan, tmp_path / "out.safetensors", describe)
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(InputError, match="the file was cut while it was read"):
        opened.read(list(opened.entries)[-1])


def test_weights_beyond_the_range_of_half_precision(tmp_path):
    """Are refused rather than written as infinity."""
    for number in (1, 2):
        save_source(
            tmp_path / f"m{number}.safetensors", state={name: values * 1e5 for name, values in random_state(spec_of(), number).items()}
        )
    lines = refused(fusing(tmp_path, "{method: mean-imm, dtype: float16}"), Problems)

    assert any(line.startswith("fused weights beyond the range of the dtype: encoder.0.input.conv.weight: found F16") for line in lines)


def test_weights_whose_squares_overflow_are_fused(tmp_path):
    """Only NaN and Inf are refused, however large the numbers."""
    for number in (1, 2):
        state = {name: np.full_like(values, 3e38 if number == 1 else 1e38) for name, values in random_state(spec_of()).items()}
        save_source(tmp_path / f"m{number}.safetensors", state=state)
    checkpoint, _, streamed = written(fusing(tmp_path, "{method: mean-imm}"))
    name = "encoder.1.input.conv.weight"

    np.testing.assert_allclose(2e38, checkpoint.read(name), rtol=1e-6)
    json.dumps(streamed.figures[name].as_json(["m1", "m2"]), allow_nan=False)


def test_fused_weights_that_overflow_are_refused(tmp_path):
    """Differences of such sources are beyond float32."""
    for number in (1, 2):
        state = {name: np.full_like(values, 3e38 if number == 1 else -3e38) for name, values in random_state(spec_of()).items()}
        save_source(tmp_path / f"m{number}.safetensors", state=state)

    assert all("beyond the range of the dtype" in line for line in refused(fusing(tmp_path, "{method: mean-imm}"), Problems))


def test_full_disk_is_known_before_the_work(folder, monkeypatch):
    """The room is taken first."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(stream._Pass, "carry_out", lambda *_: pytest.fail("it began to work"))

    assert ["no space left on the device"] == [line.split("found ")[1].split(";")[0] for line in refused(fusing(folder), OutputError)]


def test_failure_on_the_way_to_the_disk_is_not_lost(folder, monkeypatch):
    """The system tells of it once, maybe while other pieces are still computed."""

    def failing(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    carry_out = stream._Pass.carry_out

    def slowly(run, reporter):
        carry_out(run, reporter)
        monkeypatch.setattr(os, "fsync", failing)
        import time

        time.sleep(0.2)
        monkeypatch.undo()

    monkeypatch.setattr(stream._Pass, "carry_out", slowly)

    assert ["input/output error"] == [line.split("found ")[1] for line in refused(fusing(folder), OutputError)]


def test_memory_is_that_of_a_few_pieces(tmp_path):
    """Whatever the number of sources and the size of their files."""
    generator = np.random.default_rng(0)
    names = [f"m{number}" for number in range(1, 7)]
    for name in names:
        save(
            tmp_path / f"{name}.safetensors",
            {f"layer{index}.weight": generator.normal(size=(64, 64, 27)).astype(np.float32) for index in range(16)},
        )
    listed = ", ".join(f"{{name: {name}, checkpoint: {name}.safetensors}}" for name in names)
    plan = plan_fusion(fusing(tmp_path, "{method: mean-imm}", overrides=[f"sources=[{listed}]"]), verify=False)
    tracemalloc.start()
    write_fused(plan, tmp_path / "out.safetensors", describe)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "m1.safetensors").stat().st_size

    assert size > 7e6
    assert peak < size


def test_aliases_are_merged_once_and_written_under_every_name(tmp_path):
    """What several names share stays one tensor: fused once, told in the report and the metadata; a .pt does not grow."""
    for number in (1, 2):
        shared = torch.full((2, 2, 1, 1, 1), float(number))
        state = {"encoder.conv.weight": shared, "decoder.encoder.conv.weight": shared, "head.weight": torch.ones(1, 2, 1, 1, 1)}
        torch.save({"network_weights": state}, tmp_path / f"m{number}.pth")
    loaded = fusing(tmp_path, "{method: mean-imm, out: merged.pt}", suffix=".pth")
    result = fuse(loaded.path)
    rows = {row["name"]: row for row in result.content["tensors"]}
    merged = torch.load(result.out, weights_only=True)["state_dict"]

    assert "encoder.conv.weight" == rows["decoder.encoder.conv.weight"]["alias_of"]
    assert "alias_of" not in rows["encoder.conv.weight"]
    assert list(merged) == ["encoder.conv.weight", "decoder.encoder.conv.weight", "head.weight"]
    assert merged["encoder.conv.weight"].data_ptr() == merged["decoder.encoder.conv.weight"].data_ptr()
    assert {1.5} == set(merged["decoder.encoder.conv.weight"].flatten().tolist())

    in_full = fuse(loaded.path, options=Options(out=tmp_path / "merged.safetensors")).out
    checkpoint = open_checkpoint(in_full)
    assert {"decoder.encoder.conv.weight": "encoder.conv.weight"} == checkpoint.aliases
    assert {1.5} == set(checkpoint.read("decoder.encoder.conv.weight").flatten().tolist())
    assert checkpoint.digest == open_checkpoint(result.out).digest


class Listening(Silent):
    """Keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def test_sources_that_were_trained_apart_are_warned_about(tmp_path):
    """With the cosine of their weights; the report has it too. Sources of one training are not."""
    two_sources(tmp_path)
    listening = Listening()
    result = fuse(fusing(tmp_path).path, reporter=listening)

    assert len(listening.warnings) == 1
    assert listening.warnings[0].startswith("m2 was not trained from m1, nor m1 from it: the cosine of their weights is ")
    assert abs(result.content["cosine"]["m2"]) < 0.1


def test_sources_of_one_training_are_not_warned_about(folder):
    """Their weights correspond."""
    listening = Listening()
    result = fuse(fusing(folder).path, reporter=listening)

    assert not listening.warnings
    assert result.content["cosine"]["m2"] > 0.8


def test_integer_tensors_are_written_as_they_are(tmp_path):
    """Counters of batch norms, of any integer dtype."""
    for number in (1, 2):
        state = {
            "a.weight": np.full((2, 2), number, np.float32),
            "n.num_batches_tracked": np.array(40 + number),
            "z.weight": np.ones((1, 2), np.float32),
        }
        save(tmp_path / f"m{number}.safetensors", state, metadata_of())
    checkpoint, _, _ = written(fusing(tmp_path, "{method: mean-imm}"))

    assert ("I64", 42) == (checkpoint.entries["n.num_batches_tracked"].dtype, int(checkpoint.read("n.num_batches_tracked")))
