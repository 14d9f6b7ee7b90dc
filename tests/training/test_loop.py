"""The training loop on a network of a few hundred weights."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mergekit3d.datasets.sampling import Batch
from mergekit3d.errors import InputError, Interrupted, UsageError
from mergekit3d.training.events import EVENTS_NAME
from mergekit3d.training.sharing import step_seed

from .conftest import epoch_of, same, subject


def interrupting(batches, epoch, index, number=signal.SIGTERM):
    """Batches during which a signal comes, once."""
    sent = []

    def train(at):
        for position, batch in enumerate(batches(at)):
            if (at, position) == (epoch, index) and not sent:
                sent.append(True)
                os.kill(os.getpid(), number)
            yield batch

    return train


def test_training_lowers_the_loss_and_keeps_best_and_last(run):
    """Five epochs: log.csv holds a row each, the best is that of the lowest validation loss, and no snapshot is left."""
    training = run()
    result = training.fit(epochs=5)
    rows = training.log()
    losses = [float(row["validation_loss"]) for row in rows]
    assert losses[-1] < losses[0]
    assert (5, 1 + losses.index(min(losses)), min(losses)) == (result.epochs, result.best_epoch, result.best_validation_loss)
    assert float(rows[result.best_epoch - 1]["validation_dice"]) == result.best_validation_dice
    assert "all 5 epochs done" == result.stopped
    assert same(training.saved["last"], training.state())
    assert {"best", "last"} == set(training.saved)
    assert {"log.csv"} == {path.name for path in training.folder.iterdir()} - {EVENTS_NAME}


def test_the_log_has_its_columns_in_order(run):
    """As the contract names them; further ones of the trainable stand at the end."""
    training = run(trainable={"columns": lambda: {"ratio_first_m1": 0.25}})
    training.fit(epochs=2)
    first, second = training.log()
    columns = (
        "epoch step seconds learning_rate train_loss validation_loss validation_dice validation_dice_a validation_dice_b ratio_first_m1"
    )
    assert columns.split() == list(first)
    assert ("1", "3", "2", "6") == (first["epoch"], first["step"], second["epoch"], second["step"])
    assert "0.25" == first["ratio_first_m1"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run):
    """Dropout is the only thing that the seed decides here."""
    first, second, third = run("first"), run("second"), run("third", seed=6)
    for training in (first, second, third):
        training.fit()
    assert same(first.saved["last"], second.saved["last"])
    assert not same(first.saved["last"], third.saved["last"])


def test_training_leaves_the_callers_random_numbers_alone(run):
    """A library does not reseed its user."""
    torch.manual_seed(3)
    wanted = torch.rand(4)
    training = run()
    torch.manual_seed(3)
    training.fit(epochs=1)
    assert torch.equal(wanted, torch.rand(4))


def test_the_best_epoch_is_kept_when_the_loss_rises_again(run):
    """From the third epoch on the truth is turned round: the loss rises again, and the weights of the best epoch are kept."""

    def train(epoch):
        for batch in epoch_of()(epoch):
            batch.targets[...] = batch.targets if epoch < 2 else 1 - batch.targets
            yield batch

    training, good = run("turned", train=train), run("good", train=train)
    best = training.fit(epochs=6, schedule="constant").best_epoch
    assert best in (2, 3)
    good.fit(epochs=best, schedule="constant")
    assert same(good.saved["last"], training.saved["best"])
    assert not same(training.saved["best"], training.saved["last"])


def test_training_stops_when_the_validation_loss_has_converged(run):
    """Nothing moves at a rate of 1e-30: one best epoch, then the patience."""
    result = run().fit(epochs=50, patience=3, learning_rate=1e-30)
    assert (4, 1, "no better validation loss for 3 epochs") == (result.epochs, result.best_epoch, result.stopped)


def test_the_rate_falls_on_a_plateau(run):
    """After two epochs without a better loss it is halved, and so on."""
    training = run()
    training.fit(epochs=6, patience=None, plateau_patience=2, learning_rate=1e-30)
    assert [1e-30, 1e-30, 1e-30, 5e-31, 5e-31, 2.5e-31] == [float(row["learning_rate"]) for row in training.log()]


def test_without_validation_all_epochs_are_trained_and_the_last_is_best(run):
    """It is said, and the cells stay empty."""
    messages = []
    training = run(validation=(), options={"reporter": Recording(messages)})
    result = training.fit(epochs=2, patience=1)
    assert (2, 2, None, None) == (result.epochs, result.best_epoch, result.best_validation_loss, result.best_validation_dice)
    assert same(training.saved["best"], training.saved["last"])
    assert ["no validation subjects: all 2 epochs are trained, and the last is kept"] == [m for m in messages if m.startswith("no")]
    assert ["", ""] == [row["validation_loss"] for row in training.log()]


def test_exclusive_classes_are_trained(run):
    """One softmax of background and two classes."""
    training = run(train=epoch_of(exclusive=True), exclusive=True)
    training.fit(epochs=4, loss="dice-ce")
    losses = [float(row["validation_loss"]) for row in training.log()]
    assert losses[-1] < losses[0]


def test_accumulated_batches_are_one_step_of_their_mean_gradient(run):
    """Three batches in twos: a step of two and a step of one; two equal batches are one of them."""
    first = run("first")
    first.fit(epochs=1, accumulate=2)
    assert "2" == first.log()[0]["step"]
    twice, once = run("twice", train=epoch_of((4, 4))), run("once", train=epoch_of((4,)))
    for training in (twice, once):
        training.network[3].p = 0.0
    twice.fit(epochs=2, accumulate=2)
    once.fit(epochs=2)
    assert same(twice.saved["last"], once.saved["last"])


def test_the_gradient_is_clipped(run):
    """With SGD, Nesterov momentum 0.99 and norm 1e-3, the first step is 1.99 * 0.1 * 1e-3 long (weight decay aside)."""
    training = run(train=epoch_of((1,)))
    before = training.state()
    training.fit(epochs=1, optimizer="sgd", learning_rate=0.1, gradient_clip=1e-3)
    moved = sum(float((training.saved["last"][name] - before[name]).square().sum()) for name in before) ** 0.5
    assert 1.99 * 1e-4 == pytest.approx(moved, rel=0.1)


def test_two_batches_of_one_are_a_batch_of_two(run):
    """Up to rounding, where norms see one sample at a time and dropout is off."""

    def pair(_epoch):
        one, other = subject(1), subject(2)
        numbers, shapes = one.numbers + other.numbers, one.shapes + other.shapes
        yield Batch(torch.cat([one.images, other.images]), torch.cat([one.targets, other.targets]), numbers, shapes)

    together, apart = run("together", train=pair), run("apart", train=epoch_of((1, 2)))
    for training in (together, apart):
        training.network[3].p = 0.0
    together.fit(epochs=3, optimizer="sgd")
    apart.fit(epochs=3, optimizer="sgd", accumulate=2)
    for name, wanted in together.saved["last"].items():
        assert wanted == pytest.approx(apart.saved["last"][name], abs=1e-5), name


def test_the_average_is_validated_and_kept(run):
    """Best and last hold it, and validation sees it; the weights themselves go their own way, as without it."""
    plain, averaged = run("plain"), run("averaged")
    plain.fit(epochs=4)
    averaged.fit(epochs=4, ema=0.9)
    assert same(plain.state(), averaged.state())
    assert not same(averaged.state(), averaged.saved["last"])
    again = run("again")
    again.network.load_state_dict(averaged.saved["last"])
    again.fit(epochs=1, learning_rate=1e-30)
    assert float(averaged.log()[-1]["validation_loss"]) == pytest.approx(float(again.log()[0]["validation_loss"]), rel=1e-6)


def test_computing_activations_twice_changes_no_bit(run):
    """Nor the log."""
    plain, twice = run("plain"), run("twice")
    plain.fit()
    twice.fit(checkpoint_activations=True)
    assert same(plain.saved["last"], twice.saved["last"])
    assert without_seconds(plain.log()) == without_seconds(twice.log())


def test_memory_formats_differ_by_rounding(run):
    """Channels last trains the same network, and what is kept is laid out as ever once it is a file."""
    plain, last = run("plain"), run("last")
    for training in (plain, last):
        training.network.load_state_dict(run("start").state())
        training.network[3].p = 0.0
    last.network.to(memory_format=torch.channels_last_3d)
    plain.fit(optimizer="sgd")
    last.fit(optimizer="sgd", memory_format="channels_last")
    for name, wanted in plain.saved["last"].items():
        assert wanted == pytest.approx(last.saved["last"][name], abs=1e-5), name


def test_compiled_steps_train_the_same(run, monkeypatch):
    """The steps alone go through torch.compile."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network: asked.append(network) or network)
    plain, compiled = run("plain"), run("compiled")
    plain.fit()
    compiled.fit(compile=True)
    assert [compiled.network] == asked
    assert same(plain.saved["last"], compiled.saved["last"])


def test_what_cannot_be_compiled_is_told(run, monkeypatch):
    """In one line, with what to change."""
    from torch._dynamo.exc import TorchDynamoException

    def fail(images):
        raise TorchDynamoException("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda network: fail)
    with pytest.raises(UsageError, match=r"cannot compile the network.*no C\+\+ compiler.*leave out compile"):
        run().fit(compile=True)


def test_a_resumed_epoch_makes_no_batch_twice(run):
    """The data is asked for what is left of it."""
    stopped = run("stopped", train=interrupting(epoch_of(), 1, 1))
    with pytest.raises(Interrupted):
        stopped.fit()
    asked = []
    resumed = run("stopped", options={"resume": True})
    resumed.batches = lambda epoch, done: asked.append((epoch, done)) or itertools.islice(epoch_of()(epoch), done, None)
    resumed.fit()
    assert 1 == asked[0][0]
    assert 0 < asked[0][1]
    assert (2, 0) == asked[1]


def test_fp16_scales_the_loss_and_takes_the_gradients_back(run):
    """The same training as in fp32 but for the rounding of activations; an interrupted one goes on to the same bits, scale and all."""
    plain, half, stopped = (
        run("plain"),
        run("half", precision="fp16"),
        run("stopped", precision="fp16", train=interrupting(epoch_of(), 1, 1)),
    )
    plain.fit()
    half.fit()
    wanted, found = (float(training.log()[-1]["validation_loss"]) for training in (plain, half))
    assert wanted == pytest.approx(found, rel=0.02)
    assert not same(plain.saved["last"], half.saved["last"])
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = run("stopped", precision="fp16", options={"resume": True})
    resumed.fit()
    assert same(half.saved["last"], resumed.saved["last"])


@pytest.mark.parametrize(("times", "skipped"), [(3, 3), (10**6, None)])
def test_in_fp16_steps_whose_gradient_overflows_are_left_out(run, times, skipped):
    """The scale is halved and training goes on; where it overflows without a scale, the gradient is not finite in truth."""
    training, calls = run(precision="fp16", train=epoch_of((1,) * 5)), []

    def overflow(gradient):
        calls.append(1)
        return gradient * math.inf if len(calls) <= times else gradient

    training.network[0].weight.register_hook(overflow)
    before = training.state()
    if skipped is None:
        with pytest.raises(InputError, match="the gradient is not finite: epoch 4, step 2, subjects 1;"):
            training.fit(epochs=20)
        assert same(before, training.state())
        return
    training.fit(epochs=1)
    assert "5" == training.log()[0]["step"]
    assert not same(before, training.state())


def test_parameters_outside_of_the_network_are_trained(run):
    """As in an adaptation: a weight that is a function of delta, its gradient set after the backward pass, its rate its own."""
    training = run()
    network, delta = training.network, torch.nn.Parameter(torch.zeros(2))
    sources = [torch.ones(2), -torch.ones(2)]
    calls = []

    def fuse():
        calls.append("fuse")
        ratios = delta.detach().softmax(0)
        network[4].bias.data.copy_(sum(ratio * source for ratio, source in zip(ratios, sources, strict=True)))
        network[4].bias.grad = None

    def backward():
        calls.append("backward")
        ratios = delta.detach().softmax(0)
        inner = torch.stack([(network[4].bias.grad * source).sum() for source in sources])
        delta.grad = ratios * (inner - (ratios * inner).sum())

    private = [parameter for parameter in network.parameters() if parameter is not network[4].bias]
    training.trainable = {
        "parameter_groups": [{"params": private}, {"params": [delta], "lr": 0.5}],
        "before_forward": fuse,
        "after_backward": backward,
        "state": lambda: (fuse(), training.state())[1],
    }
    training.fit(epochs=1, accumulate=2)
    assert ["fuse", "backward", "fuse", "backward", "fuse"] == calls[:5]
    assert float(delta.detach().abs().max()) > 0.4
    fuse()
    assert torch.equal(network[4].bias, training.saved["last"]["4.bias"])


@pytest.mark.parametrize(("epoch", "index"), [(0, 0), (1, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "schedule": "cosine", "accumulate": 2, "gradient_clip": 0.1},
        {"ema": 0.9, "checkpoint_activations": True, "optimizer": "adamw", "schedule": "polynomial"},
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_bits(run, epoch, index, settings):
    """Wherever the signal comes, the resumed training ends with the weights and the log of one that ran through."""
    through, stopped = run("through"), run("stopped", train=interrupting(epoch_of(), epoch, index))
    result = through.fit(**settings)
    with pytest.raises(Interrupted) as caught:
        stopped.fit(**settings)
    assert 128 + signal.SIGTERM == caught.value.exit_code
    assert {} == stopped.saved
    resumed = run("stopped", options={"resume": True})
    assert result == resumed.fit(**settings)
    assert same(through.saved["last"], resumed.saved["last"])
    assert same(through.saved["best"], resumed.saved["best"])
    assert without_seconds(through.log()) == without_seconds(resumed.log())
    assert not (resumed.folder / "snapshot.pt").exists()


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}])
def test_a_training_interrupted_in_validation_goes_on_to_the_same_bits(run, settings):
    """The steps of the epoch are not taken twice, and the snapshot holds the weights, not their average, which is validated."""
    through, stopped = run("through"), run("stopped", validation=Signalling((11, 12)))
    Signalling.sent = False
    with pytest.raises(Interrupted, match="interrupted in epoch 1 after step 3; the state is saved; go on with --resume"):
        stopped.fit(**settings)
    resumed = run("stopped", options={"resume": True})
    through.fit(**settings)
    resumed.fit(**settings)
    assert same(through.saved["last"], resumed.saved["last"])
    assert without_seconds(through.log()) == without_seconds(resumed.log())


def test_parameters_outside_of_the_network_are_resumed(run):
    """They are in the snapshot, too."""
    results = []
    for name, train in (("through", epoch_of()), ("stopped", interrupting(epoch_of(), 1, 1))):
        training = run(name, train=train)
        scale = torch.nn.Parameter(torch.zeros(()))

        def push(scale=scale):
            scale.grad = scale.detach() - 1

        training.trainable = {"parameter_groups": [{"params": [scale]}], "after_backward": push}
        if name == "stopped":
            with pytest.raises(Interrupted):
                training.fit()
            scale.data.fill_(-5)
            training.options = {"resume": True}
        training.fit()
        results.append(scale.item())
    assert results[0] == results[1] != 0


@pytest.mark.parametrize(("minutes", "there"), [(0, True), (10, False)])
def test_snapshots_are_taken_by_time(run, minutes, there):
    """With no minutes between them after every step, so that kill -9 loses one at most; here it is gone before the first is due."""
    seen = []
    run(options={"draw": lambda folder: seen.append((folder / "snapshot.pt").exists())}).fit(epochs=1, snapshot_minutes=minutes)
    assert [there] == seen


def test_a_snapshot_of_another_identity_is_refused(run):
    """Before anything is trained; without --resume it is forgotten."""
    with pytest.raises(Interrupted):
        run(train=interrupting(epoch_of(), 0, 0), options={"identity": "a"}).fit()
    training = run(options={"identity": "b", "resume": True})
    with pytest.raises(UsageError, match="another recipe"):
        training.fit()
    training.options = {"identity": "b"}
    training.fit(epochs=1)
    assert not (training.folder / "snapshot.pt").exists()


def test_a_snapshot_of_another_network_is_refused(run):
    """Where the identity does not tell."""
    with pytest.raises(Interrupted):
        run(train=interrupting(epoch_of(), 0, 0)).fit()
    training = run(train=epoch_of(exclusive=True), exclusive=True, options={"resume": True})
    with pytest.raises(InputError, match="cannot go on from the snapshot: .*: found tensors of another network"):
        training.fit()


def test_resuming_without_a_snapshot_starts_anew(run):
    """A requeued job may not have come as far."""
    first, second = run("first"), run("second", options={"resume": True})
    first.fit()
    second.fit()
    assert same(first.saved["last"], second.saved["last"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_subjects_and_keeps_the_last_good_state(run, bad):
    """The second epoch brings a bad voxel in subject 2: its step is not taken, the best so far is saved as rescued."""

    def train(epoch):
        for batch in epoch_of()(epoch):
            if epoch == 1 and batch.numbers == (2,):
                batch.images[0, 0, 0, 0, 0] = bad
            yield batch

    training, good = run("bad", train=train), run("good")
    with pytest.raises(InputError) as caught:
        training.fit()
    todo = "look at the images of these subjects, or lower learning_rate; the last good state is kept"
    assert f"the loss is not finite: epoch 2, step 1, subjects 2; {todo}" == str(caught.value)
    assert 65 == caught.value.exit_code
    good.fit(epochs=1)
    assert same(good.saved["last"], training.saved["rescued"])
    assert same(good.saved["last"], training.state())
    assert (training.folder / "snapshot.pt").exists()


def test_a_gradient_that_is_not_finite_is_caught_before_it_is_used(run):
    """The loss may still be finite."""
    training = run()
    training.network[0].weight.register_hook(lambda gradient: gradient * math.inf)
    before = training.state()
    with pytest.raises(InputError, match="the gradient is not finite: epoch 1, step 1, subjects 1;"):
        training.fit()
    assert same(before, training.state())


def test_a_finished_training_removes_what_was_rescued(run):
    """The rescued weights of an earlier attempt would mislead."""
    training = run()
    training.folder.mkdir()
    (training.folder / "rescued.safetensors").write_bytes(b"")
    training.fit(epochs=1)
    assert not (training.folder / "rescued.safetensors").exists()


def test_an_epoch_without_batches_is_refused(run):
    """No training subjects."""
    with pytest.raises(InputError, match="nothing to train on: epoch 1: wanted at least one batch, found none"):
        run(train=lambda epoch: ()).fit()


def test_an_error_of_the_data_comes_through(run):
    """A damaged image is the data's to tell."""

    def train(epoch):
        yield subject(1)
        raise InputError("cannot read the image")

    with pytest.raises(InputError, match="cannot read the image"):
        run(train=train).fit()


def test_the_picture_is_drawn_at_the_end_and_its_failure_is_a_warning(run):
    """A training is not lost for a picture."""
    messages, folders = [], []

    def draw(folder):
        folders.append(folder)
        raise InputError("no fonts")

    training = run(options={"draw": draw, "reporter": Recording(messages)})
    training.fit(epochs=2)
    assert [training.folder] == folders
    assert "no picture of the learning curve: no fonts" in messages
    assert "best" in training.saved


def test_progress_counts_epochs_and_tells_the_figures(run):
    """The live line after an epoch."""
    messages = []
    run(options={"reporter": Recording(messages)}).fit(epochs=2)
    assert "run 2" == messages[0]
    assert any(message.startswith("loss 0.") and "dice 0." in message and "left" in message for message in messages)


def test_the_seed_of_a_step_depends_on_all_three():
    """And fits what torch takes."""
    seeds = {step_seed(*numbers) for numbers in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]}
    assert 5 == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from conftest import Run, epoch_of
from mergekit3d.errors import MergeKit3DError

def train(epoch):
    for batch in epoch_of()(epoch):
        print("batch", flush=True)
        time.sleep(0.05)
        yield batch

try:
    Run(Path({folder!r}), train=train).fit(epochs=20)
except MergeKit3DError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_sigterm_saves_the_state_and_resume_ends_with_the_same_bits(tmp_path, run):
    """A real process, a real signal in the middle of the work: exit code 143, one line, and the same weights in the end."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "stopped"))
    stopped = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(8):
        assert "batch\n" == stopped.stdout.readline()
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert 143 == stopped.returncode
    assert 1 == len(said.splitlines())
    assert said.startswith("interrupted in epoch ")
    resumed, through = run("stopped", options={"resume": True}), run("through")
    for training in (resumed, through):
        training.fit(epochs=20)
    assert same(through.saved["last"], resumed.saved["last"])


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class Signalling(tuple):
    """Validation subjects, with a signal at the second, once."""

    __slots__ = ()
    sent = False

    def __iter__(self):
        for index, number in enumerate(super().__iter__()):
            if index == 1 and not Signalling.sent:
                Signalling.sent = True
                os.kill(os.getpid(), signal.SIGTERM)
            yield number


class Recording:
    """A reporter that notes what it is told."""

    def __init__(self, messages):
        self.messages = messages
        self.info = self.warn = messages.append

    def task(self, description, total):
        self.messages.append(f"{description} {total}")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, steps=1, *, message=""):
        self.messages.append(message)
