"""Piano rolls, 0 or 1 for each frame and key [T, 88]: as a picture, MIDI and sound.

A piano roll does not say how long a frame is; the default is `FRAME_SECONDS`.
"""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from genjax.config import ConfigError
from genjax.data.npz import Arrays
from genjax.data.rolls import KEYS
from genjax.method import Field
from genjax.pictures import GAP, GAP_COLOUR, png

LOWEST = 21  # the MIDI number of a piano's lowest key
FRAME_SECONDS = 0.4
REST = 4  # silent frames between two rolls
PLAYED = 8  # number of rolls shown and played; the .npz has all

# The picture of rolls, in pixels.
KEY_HEIGHT, FRAME_WIDTH, WIDTH = 4, 8, 1200
LEFT, RIGHT, FOOT = 28, 14, 14  # margins for names and numbers
FRAMES_A_LINE = 16
OCTAVE = 12
BLACK_KEYS = np.isin(np.arange(OCTAVE), (1, 3, 6, 8, 10))  # from C on
WHITE, GREY, LINE, INK, NOTE = (252,) * 3, (232,) * 3, (200,) * 3, (60,) * 3, (30, 80, 170)

TICKS = 480  # MIDI ticks per frame
VELOCITY = 80

RATE = 22050  # sample rate of the sound, in Hz
PARTIALS = 8
ATTACK, RELEASE = 0.005, 0.06  # seconds
LOUDEST = 0.9  # of full scale

Rolls = UInt8[np.ndarray, "N T 88"] | Bool[np.ndarray, "N T 88"]


def _checked(rolls: Rolls) -> Bool[np.ndarray, "N T 88"]:
    """The rolls as booleans.

    Raises:
      ValueError: a wrong shape, no roll, no frame, or a value other than 0 and 1.
    """
    rolls = np.asarray(rolls)
    if rolls.ndim != 3 or rolls.shape[2] != KEYS or not rolls.size:
        raise ValueError(f"expected piano rolls [N, T, {KEYS}], got {list(rolls.shape)}")
    if not np.isin(rolls, (0, 1)).all():
        raise ValueError(f"expected piano rolls of 0 and 1, got {rolls.min()} to {rolls.max()}")
    return rolls.astype(bool)


def notes(roll: Bool[np.ndarray, "T 88"]) -> Int[np.ndarray, "M 3"]:
    """The notes of a roll: key (MIDI number), first frame, and frame after the last.

    A key that stays on is one note. Sorted by key, then by time.
    """
    edges = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    keys, starts = np.nonzero(edges == 1)
    return np.stack([keys + LOWEST, starts, np.nonzero(edges == -1)[1]], axis=1)


def roll_picture(rolls: Rolls) -> UInt8[np.ndarray, "H W 3"]:
    """Piano rolls, one below the other; time runs to the right and pitch upwards.

    Only octaves from the lowest to the highest note are shown. Each C is named (C4 is middle C),
    rows of black keys are darker, and a line is drawn every 16 frames.

    Raises:
      ValueError: not rolls [N, T, 88] of 0 and 1.
    """
    rolls = _checked(rolls)
    count, frames = rolls.shape[:2]
    used = LOWEST + np.flatnonzero(rolls.any(axis=(0, 1)))
    low, high = (used[0], used[-1]) if used.size else (60, 60)
    keys = np.arange(low // OCTAVE * OCTAVE, (high // OCTAVE + 1) * OCTAVE)[::-1]  # from the top
    full = np.pad(rolls, ((0, 0), (0, 0), (LOWEST, OCTAVE)))[..., keys]  # columns by MIDI number
    width = min(max(WIDTH // frames, 1), FRAME_WIDTH)
    height = len(keys) * KEY_HEIGHT
    shape = (count * (height + GAP) - GAP + FOOT, LEFT + frames * width + RIGHT, 3)
    canvas = np.full(shape, WHITE, np.uint8)
    rows = np.where(BLACK_KEYS[keys % OCTAVE][:, None], np.uint8(GREY), np.uint8(WHITE))
    for index, roll in enumerate(full):
        top = index * (height + GAP)
        canvas[top + height : top + height + GAP] = GAP_COLOUR  # the last gap is painted over
        part = canvas[top : top + height, LEFT : shape[1] - RIGHT]
        part[:] = np.repeat(rows, KEY_HEIGHT, axis=0)[:, None]
        part[OCTAVE * KEY_HEIGHT - 1 :: OCTAVE * KEY_HEIGHT] = LINE
        part[:, :: FRAMES_A_LINE * width] = LINE
        part[np.repeat(np.repeat(roll.T, KEY_HEIGHT, axis=0), width, axis=1)] = NOTE
    canvas[shape[0] - FOOT :] = WHITE
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for index in range(count):
        for row in np.flatnonzero(keys % OCTAVE == 0):
            bottom = index * (height + GAP) + (row + 1) * KEY_HEIGHT
            draw.text((4, bottom), f"C{keys[row] // OCTAVE - 1}", INK, anchor="lb")
    step = FRAMES_A_LINE * max(1, -(-40 // (FRAMES_A_LINE * width)))  # room for the numbers
    for frame in range(0, frames, step):
        draw.text((LEFT + frame * width, shape[0] - 1), str(frame), INK, anchor="lb")
    return np.array(image)


def _variable(value: int) -> bytes:
    """A MIDI variable-length number: 7 bits per byte, high bits first, all but the last marked."""
    encoded = [value & 0x7F]
    while value := value >> 7:
        encoded.append(value & 0x7F | 0x80)
    return bytes(reversed(encoded))


def midi(rolls: Rolls, seconds: float = FRAME_SECONDS) -> bytes:
    """Piano rolls as a Standard MIDI File of format 0, one after the other.

    A frame is a quarter note. A marker names each roll; `REST` silent frames follow it.

    Args:
      rolls: what to write; a key that stays on is one note.
      seconds: length of a frame, rounded to microseconds.

    Raises:
      ValueError: not rolls [N, T, 88] of 0 and 1, or a frame length that MIDI cannot store.
    """
    rolls = _checked(rolls)
    tempo = round(seconds * 1e6)
    if not 0 < tempo < 2**24:
        raise ValueError(f"seconds={seconds}: expected a frame between 1e-6 and 16.7 seconds")
    length = rolls.shape[1]
    # (frame, order within the frame, event): notes end before others begin.
    events = [(0, 0, b"\xff\x51\x03" + tempo.to_bytes(3, "big")), (0, 0, b"\xc0\x00")]
    for index, roll in enumerate(rolls):
        begin = index * (length + REST)
        name = b"sample %d" % (index + 1)
        events.append((begin, 2, b"\xff\x06" + _variable(len(name)) + name))
        for key, start, end in notes(roll).tolist():
            events.append((begin + start, 3, bytes((0x90, key, VELOCITY))))
            events.append((begin + end, 1, bytes((0x80, key, 0))))
    events = sorted(events, key=lambda event: event[:2])
    events.append((begin + length, 4, b"\xff\x2f\x00"))
    track, now, status = b"", 0, 0
    for frame, _, event in events:
        track += _variable((frame - now) * TICKS) + event[event[0] == status :]  # running status
        now, status = frame, event[0] if event[0] < 0xF0 else 0
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _tone(key: int, seconds: float) -> Float[np.ndarray, "samples"]:
    """The sound of a held key: partials of a string; higher ones are softer and shorter.

    A4 (key 69) is 440 Hz; partials above half the sample rate are left out.
    """
    time = np.arange(round(seconds * RATE)) / RATE
    base = 440.0 * 2.0 ** ((key - 69) / 12)
    sound = np.zeros_like(time)
    for partial in range(1, PARTIALS + 1):
        if (frequency := partial * base) < RATE / 2:
            decay = np.exp(-time * np.sqrt(frequency / 440.0))
            sound += decay * np.sin(2 * np.pi * frequency * time) / partial**2
    return sound * np.minimum(time / ATTACK, 1.0)


def wav(rolls: Rolls, seconds: float = FRAME_SECONDS) -> bytes:
    """Piano rolls as sound, one after the other: a WAV file, 16-bit mono of `RATE` Hz.

    The loudest moment is at `LOUDEST` of full scale; silence stays silence.

    Args:
      rolls: what to play; a key that stays on is one note. `REST` silent frames follow each.
      seconds: length of a frame.

    Raises:
      ValueError: not rolls [N, T, 88] of 0 and 1, or frames shorter than one sample.
    """
    rolls = _checked(rolls)
    if round(seconds * RATE) < 1:
        raise ValueError(f"seconds={seconds}: expected a frame of at least one sample, 1/{RATE}")
    count, length = rolls.shape[:2]
    played = [
        (key, index * (length + REST) + start, index * (length + REST) + end)
        for index, roll in enumerate(rolls)
        for key, start, end in notes(roll).tolist()
    ]
    longest = {}
    for key, start, end in played:
        longest[key] = max(longest.get(key, 0), end - start)
    tones = {key: _tone(key, frames * seconds + 2 * RELEASE) for key, frames in longest.items()}
    fade = np.linspace(1.0, 0.0, round(RELEASE * RATE))
    total = round((count * (length + REST) - REST) * seconds * RATE) + len(fade)
    sound = np.zeros(total, np.float32)
    for key, start, end in played:
        first, last = round(start * seconds * RATE), round(end * seconds * RATE)
        sound[first:last] += tones[key][: last - first]
        sound[last : last + len(fade)] += tones[key][last - first :][: len(fade)] * fade
    peak = max(float(np.abs(sound).max()), 1e-9)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound * (LOUDEST * 32767 / peak)).astype("<i2").tobytes())
    return buffer.getvalue()


def parse(given: str, field: Field) -> UInt8[np.ndarray, "T 88"]:
    """The first roll of the array `samples` in an .npz file, as --mode=sample writes it.

    Raises:
      ConfigError: the file is missing, or has no roll of the field's length.
    """
    try:
        (roll,) = _checked(Arrays(given)["samples"][:1])
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{given!r}: expected an .npz file of piano rolls ({error}).") from error
    if roll.shape != tuple(field.shape):
        raise ConfigError(f"{given!r}: a roll of {roll.shape}, expected {tuple(field.shape)}.")
    return roll.astype(np.uint8)


def picture(samples: Rolls, field: Field) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of the first `PLAYED` rolls, one below the other."""
    return roll_picture(samples[:PLAYED])


def player(samples: Rolls, field: Field) -> bytes:
    """The first `PLAYED` rolls as sound."""
    return wav(samples[:PLAYED])


def files(samples: Rolls, field: Field) -> dict[str, bytes]:
    """The first `PLAYED` rolls as a picture, MIDI and sound."""
    shown = samples[:PLAYED]
    return {".png": png(roll_picture(shown)), ".mid": midi(shown), ".wav": wav(shown)}
