"""Samples as files, of each modality."""

import numpy as np
import pytest
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.method import Field
from genjax.sampling import written


class Letters:
    """A tokenizer whose ids are code points."""

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i >= 0)


def field(kind):
    facts = {"text": {"tokenizer": Letters()}, "label": {"num_classes": 2, "classes": ("a", "b")}}
    return Field(kind, (), np.dtype(np.int32), facts.get(kind, {}))


ROLLS = np.zeros((10, 3, 88), np.uint8)
ROLLS[0, 1, 48] = 1


@pytest.mark.parametrize(
    ("kind", "samples", "endings"),
    [
        ("image", np.full((3, 4, 4, 1), 7, np.uint8), ["", ".png", ".npz"]),
        ("image", np.full((3, 4, 4, 3), 0.5, np.float32), ["", ".png", ".npz"]),
        ("mask", np.eye(4, dtype=np.uint8)[None, ..., None], ["", ".png", ".npz"]),
        ("code", np.full((3, 4, 4, 3), 7, np.uint8), [".npz"]),
        ("text", np.array([[104, 233, -1]], np.int32), [".txt", ".npz"]),
        ("label", np.array([1, 0], np.int32), [".txt", ".npz"]),
        ("roll", ROLLS, [".png", ".mid", ".wav", ".npz"]),
        ("real", np.ones((2, 3), np.float32), [".npz"]),
    ],
)
def test_save_writes_what_goes_with_the_modality(tmp_path, kind, samples, endings):
    base = tmp_path / "new" / "step_1_temperature_0.8"
    found = written.save(base, samples, field(kind))
    assert [str(path) for path in found] == [f"{base}{ending}" for ending in endings]
    assert sorted(found) == sorted(base.parent.iterdir())
    back = np.load(found[-1])["samples"]
    np.testing.assert_array_equal(back, samples)
    assert back.dtype == samples.dtype
    for path in found:
        if path.suffix == ".png":
            shown = modalities.picture_of(samples, field(kind))
            np.testing.assert_array_equal(np.asarray(Image.open(path)), shown)
        if path.suffix == ".txt":
            assert path.read_text("utf-8") == modalities.text_of(samples, field(kind))
        if path.suffix == ".wav":
            assert path.read_bytes() == modalities.player_of(samples, field(kind))
        if path.suffix == ".mid":  # the first eight of ten
            assert path.read_bytes().count(b"\xff\x06") == 8


def test_every_image_is_a_file_of_its_own_and_those_of_before_go(tmp_path):
    rows = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4, 1)
    written.save(tmp_path / "a", rows, field("image"))
    (tmp_path / "a" / "notes.txt").write_text("mine")
    written.save(tmp_path / "a", rows[:3] + 1, field("image"))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "notes.txt"]
    read = np.asarray(Image.open(tmp_path / "a" / "00002.png"))
    np.testing.assert_array_equal(read, rows[2, ..., 0] + 1)


def test_nothing_is_written_of_a_kind_that_nobody_knows(tmp_path):
    with pytest.raises(ConfigError, match="'spectrum': no module"):
        written.save(tmp_path / "a", np.ones((2, 3), np.float32), field("spectrum"))
    with pytest.raises(ValueError, match="expected token ids"):
        written.save(tmp_path / "a", np.ones((2, 3), np.float32), field("text"))
    assert not list(tmp_path.iterdir())


def test_a_modality_of_ones_own_says_what_is_written(tmp_path, monkeypatch):
    (tmp_path / "spectrum.py").write_text(
        "def parse(given, field):\n    pass\n"
        "def files(samples, field):\n    return {'.hz': b'%d' % samples.sum(), '.md': b'#'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = written.save(tmp_path / "out" / "a", np.ones((2, 3)), field("spectrum"))
    assert [path.name for path in found] == ["a.hz", "a.md", "a.npz"]
    assert found[0].read_bytes() == b"6"
    assert modalities.picture_of(np.ones((2, 3)), field("spectrum")) is None
