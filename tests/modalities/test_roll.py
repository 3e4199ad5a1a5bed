"""Piano rolls: MIDI against mido, sound against its own spectrum, pictures by their pixels."""

from __future__ import annotations

import io
import pathlib
import struct

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from genjax.config import ConfigError
from genjax.method import Field
from genjax.modalities import roll

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "midi.npz")
BLUE = (30, 80, 170)
RATE = 22050


FIELD = Field("roll", (20, 88), np.dtype(np.uint8))


def rolls(*played, count=1, frames=20):
    """[count, frames, 88] with (roll, MIDI key, first frame, frame after the last) on."""
    made = np.zeros((count, frames, 88), np.uint8)
    for index, key, start, end in played:
        made[index, start:end, key - 21] = 1
    return made


def test_midi_is_the_file_that_mido_writes():
    made = roll.midi(GOLDEN["rolls"], float(GOLDEN["seconds"]))
    assert made == GOLDEN["midi"].tobytes()


def test_notes_are_those_that_mido_reads():
    seconds, made = float(GOLDEN["seconds"]), GOLDEN["rolls"]
    found = []
    for index, one in enumerate(made):
        shift = index * (len(one) + roll.REST)
        found += [(k, (shift + a) * seconds, (shift + b) * seconds) for k, a, b in notes_of(one)]
    assert len(found) > 80
    np.testing.assert_allclose(np.array(sorted(found)), GOLDEN["notes"], atol=1e-9)


def notes_of(one):
    return roll.notes(one).tolist()


def test_notes_cover_the_roll():
    """Painting the notes again gives the roll, and no two of a key touch."""
    one = (np.random.default_rng(1).random((50, 88)) < 0.3).astype(np.uint8)
    again = np.zeros((51, 88), np.uint8)
    for key, start, end in notes_of(one):
        assert not again[start : end + 1, key - 21].any()
        again[start:end, key - 21] = 1
        assert not one[end : end + 1, key - 21].any()
    np.testing.assert_array_equal(again[:-1], one)


def test_midi_read_by_the_standard():
    """By a reader of our own: header, tempo, a held key is one note, the length of the file."""
    made = roll.midi(rolls((0, 69, 2, 9), (0, 72, 2, 20), (0, 108, 19, 20)), 0.5)
    kind, size, form, tracks, ticks = struct.unpack(">4sIHHH", made[:14])
    assert (kind, size, form, tracks, ticks) == (b"MThd", 6, 0, 1, 480)
    assert made[14:18] == b"MTrk"
    assert struct.unpack(">I", made[18:22])[0] == len(made) - 22
    body, at, now, status, events = made[22:], 0, 0, 0, []
    while at < len(body):
        delta = 0
        while True:
            delta, more = delta << 7 | body[at] & 127, body[at] & 128
            at += 1
            if not more:
                break
        now += delta
        if body[at] & 128:
            status, at = body[at], at + 1
        length = {0xFF: 2 + body[at + 1], 0xC0: 1}.get(status, 2)
        events.append((now / ticks, bytes([status]) + body[at : at + length]))
        at += length
    assert events == [
        (0, b"\xff\x51\x03" + (500_000).to_bytes(3, "big")),
        (0, b"\xc0\x00"),
        (0, b"\xff\x06\x08sample 1"),
        (2, b"\x90\x45\x50"),
        (2, b"\x90\x48\x50"),
        (9, b"\x80\x45\x00"),
        (19, b"\x90\x6c\x50"),
        (20, b"\x80\x48\x00"),
        (20, b"\x80\x6c\x00"),
        (20, b"\xff\x2f\x00"),
    ]


def sound(made, seconds=0.1):
    rate, samples = scipy.io.wavfile.read(io.BytesIO(roll.wav(made, seconds)))
    assert rate == RATE
    assert samples.dtype == np.int16
    assert samples.ndim == 1
    return samples.astype(np.float64)


@pytest.mark.parametrize(
    ("key", "frequency"),
    [(21, 27.5), (45, 110.0), (60, 261.6256), (69, 440.0), (76, 659.2551), (108, 4186.009)],
)
def test_a_key_sounds_at_its_frequency(key, frequency):
    samples = sound(rolls((0, key, 0, 20)))
    power = np.abs(np.fft.rfft(samples, 2**18))
    assert abs(np.argmax(power) * RATE / 2**18 - frequency) < 0.3


def test_a_high_key_has_no_partials_that_fold_back():
    samples = sound(rolls((0, 108, 0, 20)))
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 2**16))
    frequency = np.arange(len(power)) * RATE / 2**16
    away = np.abs(frequency / 4186.009 - np.rint(frequency / 4186.009)) > 0.02
    assert power[away].max() < 1e-3 * power.max()


def test_a_chord_has_the_peaks_of_its_keys():
    samples = sound(rolls((0, 57, 0, 20), (0, 64, 0, 20), (0, 71, 0, 20)))
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 2**18))
    for frequency in (220.0, 329.628, 493.883):
        at = round(frequency * 2**18 / RATE)
        near = power[at - 300 : at + 301]
        assert abs(np.argmax(near) - 300) <= 4
        assert near.max() > 0.1 * power.max()


def test_sound_is_where_the_notes_are():
    made = rolls((0, 69, 5, 8), (1, 81, 0, 2), count=2)
    samples = sound(made)
    assert len(samples) == round(44 * 0.1 * RATE) + round(0.06 * RATE)
    frame = RATE / 10
    heard = [
        np.abs(samples[round(i * frame) + 1 : round((i + 1) * frame)]).max() for i in range(44)
    ]
    assert np.flatnonzero(np.array(heard) > 0).tolist() == [5, 6, 7, 8, 24, 25, 26]
    assert 0 <= np.flatnonzero(samples)[0] - round(5 * frame) < 5
    release = samples[round(8 * frame) + 1 : round(9 * frame)]
    assert not release[round(0.06 * RATE) :].any()
    power = np.abs(np.fft.rfft(samples[round(24 * frame) : round(26 * frame)], 2**16))
    assert abs(np.argmax(power) * RATE / 2**16 - 880) < 2


def test_a_held_key_is_struck_once():
    """It fades over its frames; struck again, it is as loud as at first."""
    held, again = sound(rolls((0, 69, 0, 20))), sound(rolls((0, 69, 0, 9), (0, 69, 10, 20)))
    loudness = [
        [np.abs(s[i * 2205 : (i + 1) * 2205]).max() for i in range(20)] for s in (held, again)
    ]
    assert np.all(np.diff(loudness[0]) < 0)
    assert loudness[1][10] > 0.95 * loudness[1][0] > 1.5 * loudness[1][8]


def test_no_step_in_the_sound():
    """Neither where keys begin or end, nor where rolls meet."""
    made = (np.random.default_rng(2).random((2, 20, 88)) < 0.1).astype(np.uint8)
    made[..., 24:] = 0  # low tones, between which a step stands out
    samples = sound(made)
    high = np.abs(np.diff(samples, 2))
    assert high.max() < 0.012 * np.abs(samples).max()


@pytest.mark.parametrize("made", [np.ones((1, 5, 88), bool), rolls((0, 69, 0, 1))])
def test_sound_is_loud_and_does_not_clip(made):
    peak = np.abs(sound(made)).max()
    assert peak == round(0.9 * 32767)


def test_silence():
    made = rolls(count=2, frames=3)
    assert not sound(made).any()
    assert roll.roll_picture(made).shape[2] == 3
    assert roll.midi(made).count(b"\x90") == 0


def blue(picture):
    """Rows and columns of the notes' colour."""
    return np.nonzero((picture == np.uint8(BLUE)).all(-1))


def test_picture_has_pitch_up_time_right_and_rolls_below_each_other():
    made = rolls((0, 60, 3, 5), (0, 64, 10, 11), (1, 60, 3, 5), count=2)
    boxes = []
    for index, key, start, end in ((0, 60, 3, 5), (0, 64, 10, 11), (1, 60, 3, 5)):
        hidden = made.copy()
        hidden[index, start:end, key - 21] = 0
        full, less = roll.roll_picture(made), roll.roll_picture(hidden)
        assert full.dtype == np.uint8
        rows, columns = np.nonzero((full != less).any(-1))
        assert set(map(tuple, full[rows, columns])) == {BLUE}
        boxes.append((rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
    low, high, second = boxes
    key = low[1] - low[0]
    assert key >= 3
    assert low[3] - low[2] == 2 * (high[3] - high[2])  # two frames and one
    assert high[2] - low[2] == 7 * (high[3] - high[2])  # seven frames later
    assert low[0] - high[0] == 4 * key  # four keys up
    assert second[2:] == low[2:]
    assert second[0] > low[1]


@pytest.mark.parametrize("key", [21, 23, 24, 59, 60, 107, 108])
def test_every_key_is_in_the_picture(key):
    """Alone it has the octave from the C below it to itself: its row says which key it is."""
    picture = roll.roll_picture(rolls((0, key, 0, 20)))
    rows, columns = blue(picture)
    assert len(rows) == 4 * 20 * 8
    octave = 12 * 4
    assert picture.shape[0] == octave + 14
    assert (octave - 1 - rows.max()) // 4 == key % 12
    assert columns.min() == 28


def test_long_rolls_fit():
    wide = roll.roll_picture(rolls((0, 60, 0, 1000), frames=1000))
    assert wide.shape[1] <= 1300
    _, columns = blue(wide)
    assert columns.max() - columns.min() + 1 == 1000


def test_rolls_that_are_none():
    for bad in (np.zeros((3, 88)), np.zeros((1, 3, 87)), np.zeros((1, 0, 88))):
        with pytest.raises(ValueError, match="expected piano rolls"):
            roll.roll_picture(bad)
    with pytest.raises(ValueError, match="of 0 and 1, got 0 to 2"):
        roll.midi(2 * rolls((0, 69, 0, 1)))
    for seconds in (0.0, 16.8):
        with pytest.raises(ValueError, match=r"16\.7 seconds"):
            roll.midi(rolls(), seconds)
    with pytest.raises(ValueError, match="one sample"):
        roll.wav(rolls(), 0.0)


def test_eight_of_many_rolls_are_shown_and_played():
    made = rolls((0, 69, 1, 2), (8, 30, 0, 3), count=10, frames=3)
    files = roll.files(made, FIELD)
    assert list(files) == [".png", ".mid", ".wav"]
    assert files[".mid"] == roll.midi(made[:8])
    assert files[".mid"].count(b"\xff\x06") == 8
    assert files[".wav"] == roll.player(made, FIELD) == roll.wav(made[:8])
    shown = np.asarray(Image.open(io.BytesIO(files[".png"])))
    np.testing.assert_array_equal(shown, roll.picture(made, FIELD))
    np.testing.assert_array_equal(shown, roll.roll_picture(made[:8]))


def test_a_roll_is_given_as_a_file_of_samples(tmp_path):
    made = rolls((0, 69, 1, 2), (1, 30, 0, 3), count=2)
    np.savez(tmp_path / "a.npz", samples=made.astype(bool))
    given = roll.parse(str(tmp_path / "a.npz"), FIELD)
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, made[0])
    np.savez(tmp_path / "short.npz", samples=made[:, :9])
    with pytest.raises(ConfigError, match=r"short\.npz.*\(9, 88\), expected \(20, 88\)"):
        roll.parse(str(tmp_path / "short.npz"), FIELD)
    np.savez(tmp_path / "other.npz", rolls=made)
    np.savez(tmp_path / "loud.npz", samples=2 * made)
    np.save(tmp_path / "one.npy", made)
    (tmp_path / "text.npz").write_text("la")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("gone.npz", "empty.npz", "other.npz", "loud.npz", "one.npy", "text.npz"):
        with pytest.raises(ConfigError, match=f"{name}.*expected an .npz file of piano rolls"):
            roll.parse(str(tmp_path / name), FIELD)
