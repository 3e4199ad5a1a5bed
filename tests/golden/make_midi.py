"""Piano rolls as mido writes them to a Standard MIDI File, and the notes that it then reads.

/path/to/parity/bin/python tests/golden/make_midi.py [OUTPUT.npz]
"""

from __future__ import annotations

import importlib.metadata
import io
import pathlib
import sys

import mido
import numpy as np

TICKS, REST, SECONDS = 480, 4, 0.35


def rolls() -> np.ndarray:
    """Two rolls [2, 40, 88]: keys that stay on, chords, the outermost keys, silence at the end."""
    rng = np.random.default_rng(0)
    made = np.zeros((2, 40, 88), np.uint8)
    for roll in made:
        for key in rng.permutation(88)[:12]:
            roll[:36, key] = np.repeat(rng.random(18) < 0.4, 2)
    made[0, 0:40, 0] = made[0, 39, 87] = made[1, 0, 87] = made[1, 20, 3] = 1
    return made


def written(made: np.ndarray) -> bytes:
    """The file: in a frame what ends, the roll's name, what begins; keys upwards."""
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(60 / SECONDS)))
    track.append(mido.Message("program_change", program=0))
    now = 0
    for index, roll in enumerate(made):
        for frame in range(len(roll) + 1):
            here = (index * (len(roll) + REST) + frame) * TICKS
            messages = []
            for key in range(88):
                if (
                    frame > 0
                    and roll[frame - 1, key]
                    and (frame == len(roll) or not roll[frame, key])
                ):
                    messages.append(mido.Message("note_off", note=key + 21, velocity=0))
            if frame == 0:
                messages.append(mido.MetaMessage("marker", text=f"sample {index + 1}"))
            for key in range(88):
                if frame < len(roll) and roll[frame, key] and not (frame and roll[frame - 1, key]):
                    messages.append(mido.Message("note_on", note=key + 21, velocity=80))
            for message in messages:
                track.append(message.copy(time=here - now))
                now = here
    track.append(mido.MetaMessage("end_of_track", time=here - now))
    buffer = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS, tracks=[track]).save(file=buffer)
    return buffer.getvalue()


def read(content: bytes) -> np.ndarray:
    """The notes of a file: key, seconds at which it begins and ends, in that order."""
    found, sounding, now = [], {}, 0.0
    for message in mido.MidiFile(file=io.BytesIO(content)):
        now += message.time
        if message.type == "note_on":
            sounding[message.note] = now
        elif message.type == "note_off":
            found.append((message.note, sounding.pop(message.note), now))
    return np.array(sorted(found))


def main(path: pathlib.Path) -> None:
    """Writes the rolls, the file and its notes."""
    made = rolls()
    content = written(made)
    arrays = {"rolls": made, "seconds": SECONDS, "midi": np.frombuffer(content, np.uint8)}
    arrays |= {"notes": read(content), "peer": f"mido {importlib.metadata.version('mido')}"}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.with_name("midi.npz"))
