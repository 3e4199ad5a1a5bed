from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest
import scipy.io
from datasets import dataset as base

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import catalogue, downloads, loader, rolls

RNG = np.random.default_rng(0)
FRAMES = (3, 11, 2, 10, 21, 1)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENJAX_DATA", str(tmp_path / "cache"))


def cells(tunes):
    array = np.empty((1, len(tunes)), object)
    for i, tune in enumerate(tunes):
        array[0, i] = tune
    return array


@pytest.fixture
def tunes():
    return [(RNG.random((n, 88)) < 0.05).astype(np.uint8) for n in FRAMES]


@pytest.fixture
def music(tmp_path, tunes):
    path = tmp_path / "music.mat"
    parts = {"validdata": cells(tunes[:2]), "testdata": cells(tunes[2:4]), "other": np.eye(2)}
    scipy.io.savemat(path, {"traindata": cells(tunes), **parts}, do_compression=True)
    return path


def dataset(path, length=10, **keys):
    made = base(name="rolls", path=str(path), **keys)
    made.text.length = length
    return made


def test_tunes_are_rows_and_every_later_frame_a_target_once(music, tunes):
    wanted = dataset(music)
    loaded = catalogue.load(wanted)
    assert loaded.spec.target == "frame"
    assert loaded.spec.generated.kind == "roll"
    assert loaded.spec.sizes == {"train": 6, "validation": 2, "test": 2}
    assert catalogue.spec(wanted) == loaded.spec
    source = loaded.splits["train"]
    rows, taken = [source[i] for i in range(6)], source.take(np.arange(6))
    for name in ("frame", "segment"):
        np.testing.assert_array_equal(np.stack([r[name] for r in rows]), taken[name])
        assert taken[name].shape[1:] == loaded.spec.fields[name].shape
        assert taken[name].dtype == loaded.spec.fields[name].dtype
    # By hand: 3, 11, 2 and 10 frames fit; 21 are frames 0-10 and 10-20; one frame has no target.
    parts = [tunes[0], tunes[1], tunes[2], tunes[3], tunes[4][:11], tunes[4][10:]]
    for row, part in zip(rows, parts, strict=True):
        np.testing.assert_array_equal(row["frame"][: len(part)], part)
        assert not row["frame"][len(part) :].any()
        np.testing.assert_array_equal(row["segment"], np.arange(11) < len(part))
    assert modalities.transforms(wanted, loaded.spec, train=True) is None
    batch = loader.train_batches(source, seed=0, batch_size=4)[3]
    assert batch["frame"].shape == (4, 11, 88)


def test_several_tunes_fit_into_a_row(music, tunes):
    wanted = dataset(music, 20)
    wanted.text.documents = "packed"
    loaded = catalogue.load(wanted)
    source = loaded.splits["train"]
    assert catalogue.spec(wanted) == loaded.spec
    rows = source.take(np.arange(len(source)))
    assert len(source) == 3  # 21; 11 + 10; 3 + 2
    found = [
        frame[segment == n]
        for frame, segment in zip(rows["frame"], rows["segment"], strict=True)
        for n in range(1, segment.max() + 1)
    ]
    assert all(not f[s == 0].any() for f, s in zip(rows["frame"], rows["segment"], strict=True))
    assert sorted(map(bytes, found)) == sorted(bytes(t) for t in tunes if len(t) > 1)


def test_splits_that_a_file_lacks_are_taken_out_of_train(tmp_path, tunes):
    path = tmp_path / "plain.mat"
    dtypes = (bool, float, "i8", "u1", "f4", "u2")
    kinds = [tune.astype(dtype) for tune, dtype in zip(tunes, dtypes, strict=True)]
    scipy.io.savemat(path, {"traindata": cells(kinds).T})
    loaded = catalogue.load(dataset(path, 20, validation="2_examples", test="20_percent"))
    assert loaded.spec.sizes == {"train": 2, "validation": 2, "test": 1}
    sums = [
        int(source[i]["frame"].sum())
        for source in loaded.splits.values()
        for i in range(len(source))
    ]
    assert sorted(sums) == sorted(int(tune.sum()) for tune in tunes[:5])


def test_the_official_files_are_downloaded_or_given(music, monkeypatch):
    digest = hashlib.sha256(music.read_bytes()).hexdigest()
    wanted = downloads.Download(music.as_uri(), digest)
    monkeypatch.setitem(rolls.DOWNLOADS, "nottingham", wanted)
    for path in ("", music):
        named = dataset(path)
        named.name = "nottingham"
        assert catalogue.load(named).spec.sizes["test"] == 2
    named.name = "jsb_chorales"
    with pytest.raises(
        ConfigError, match=f"its sha256 is {digest}, expected that of jsb_chorales, ac0e60"
    ):
        catalogue.load(named)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"data": np.eye(2)}, "no variable traindata"),
        ({"traindata": np.eye(2)}, r"traindata in .* is float64\[2, 2\]; expected a cell array"),
        ({"traindata": cells([np.eye(87)])}, r"tune 1 of .* is float64\[87, 87\]; expected"),
        ({"traindata": cells([np.zeros((3, 88)), np.full((3, 88), 2)])}, "tune 2 of traindata"),
        ({"traindata": cells(["text"])}, "a matrix of class 4: expected numbers"),
        ({"traindata": cells([np.zeros((1, 88))])}, "no tune of two frames"),
    ],
)
def test_other_contents_are_one_clear_error(tmp_path, variables, said):
    scipy.io.savemat(tmp_path / "a.mat", variables)
    with pytest.raises(ConfigError, match=said):
        catalogue.load(dataset(tmp_path / "a.mat"))


def test_damaged_files_are_one_clear_error(tmp_path, music):
    content = music.read_bytes()
    path = tmp_path / "bad.mat"
    rng = np.random.default_rng(1)
    for seed in range(60):
        damaged = bytearray(content[: rng.integers(len(content))] if seed % 2 else content)
        for place in rng.integers(0, max(len(damaged), 1), 20 if seed % 4 < 2 else 0):
            damaged[place % max(len(damaged), 1)] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ConfigError):  # or, where it does not matter, no error
            catalogue.load(dataset(path))
    path.write_bytes(content[:500])
    with pytest.raises(ConfigError, match=r"bad\.mat cannot be read: .*Expected a MATLAB 5 file"):
        catalogue.load(dataset(path))
    for name, said in (("", "needs dataset.path"), (tmp_path / "gone.mat", "no such file")):
        with pytest.raises(ConfigError, match=said):
            catalogue.load(dataset(name))
