"""Conditions of samples: from command-line flags, from a file, or from held-out examples.

`Method.conditions` lists those of a method. A row has one value of each: name -> array.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from genjax import modalities
from genjax.checks import ConfigError, literal, nearest
from genjax.data import json_lines, npz, sources
from genjax.data.transforms import Transform
from genjax.files import at_home
from genjax.method import DataSpec, Field
from genjax.modalities.code import check_range
from genjax.modalities.label import NAME, num_classes
from genjax.modalities.text import read_file
from genjax.networks import text_tower

Condition = Mapping[str, Array]
Rows = list[dict[str, np.ndarray]]

PROMPT, TEXT = "prompt", "text"  # --prompt is another flag of a condition named "text"
UNLISTED = {"field": ""}  # a condition with this fact is never taken from held-out examples
SHARE = {**UNLISTED, "range": (0.0, 1.0)}
_INLINE_KINDS = ("text", "label", "code", "real")  # values of other kinds are names of files

# ---- for methods ---------------------------------------------------------------------------------


def labels(
    spec: DataSpec, known: bool, num: int, condition: Condition, key: Array, setting: str = ""
) -> Int[Array, "B"] | None:
    """The labels of `num` samples: those given, or each class in turn; None if not `known`.

    The first class is drawn from `key`: over many batches all classes come equally often, even if
    there are more classes than samples in a batch.

    Raises:
      ConfigError: labels for a model trained without them, that is without `setting`; or not one
        label for each sample.
    """
    if not known:
        if condition:
            raise ConfigError(
                f"{', '.join(condition)}: the model has no such condition: leave it out"
                + (f", or train with {setting}." if setting else ".")
            )
        return None
    if NAME not in condition:
        classes = num_classes(spec)
        return (jax.random.randint(key, (), 0, classes) + jnp.arange(num)) % classes
    label = jnp.asarray(condition[NAME], jnp.int32)
    if label.shape != (num,):
        raise ConfigError(f"label: expected {num} labels, got an array of {label.shape}.")
    return label


def complete(
    spec: DataSpec,
    fields: Mapping[str, Field],
    num: int,
    condition: Condition,
    key: Array,
    setting: str = "",
) -> dict[str, Array]:
    """Every condition of `num` samples: those given, and `labels` if no labels are given.

    Args:
      spec: of the data.
      fields: the conditions that the model knows.
      num: how many samples.
      condition: the given conditions.
      key: draws the labels.
      setting: the setting with which a model learns conditions, for error messages.

    Raises:
      ConfigError: a condition is unknown to the model, missing, or does not have one row for each
        sample.
    """
    if not fields:
        labels(spec, False, num, condition, key, setting)
    if unknown := [name for name in condition if name not in fields]:
        raise ConfigError(
            f"{', '.join(unknown)}: the model has no such condition. It has {', '.join(fields)}."
        )
    values = {}
    for name, field in fields.items():
        if name == NAME:
            label = {NAME: condition[NAME]} if NAME in condition else {}
            values[name] = labels(spec, True, num, label, key)
            continue
        values[name] = jnp.asarray(required(condition, name))
        if values[name].shape != (num, *field.shape):
            raise ConfigError(
                f"{name}: expected an array of {(num, *field.shape)}, got {values[name].shape}."
            )
    return values


def required(condition: Condition, name: str) -> Array:
    """The condition `name`, without which the method cannot sample.

    Raises:
      ConfigError: it is not given.
    """
    if name not in condition:
        raise ConfigError(
            f"--{name} is missing: the method cannot sample without it. Give it, or --conditions="
            "FILE, or --conditions=test to take it from held-out examples."
        )
    return condition[name]


def token_conditions(
    fields: Mapping[str, Field], values: Condition, hidden: Bool[Array, "B"] | None = None
) -> dict[str, Array]:
    """The arguments of a network of tokens for its conditions, a label and a text.

    Args:
      fields: the conditions that the network knows.
      values: of each, those of B examples.
      hidden: the examples without conditions: their class is the one after the last, and nothing
        of their text is seen; None for none.

    Returns:
      `label`; `text`, and `seen`: which of its tokens belong to the text, its end included.
    """
    arguments = {}
    for name, field in fields.items():
        value = values[name]
        if field.kind == "label":
            null = field.facts["num_classes"]
            arguments["label"] = value if hidden is None else jnp.where(hidden, null, value)
            continue
        special = field.facts["special"]
        seen = text_tower.seen(value, special["eos"], special.get("pad", special["eos"]))
        arguments["text"] = value
        arguments["seen"] = seen if hidden is None else seen & ~hidden[:, None]
    return arguments


# ---- given by a user -----------------------------------------------------------------------------


def parse(known: Mapping[str, Field], given: Mapping[str, Sequence[str]]) -> Rows:
    """The rows that flags give: each condition has one value for all rows, or one for each row.

    Args:
      known: the conditions of the method.
      given: flag of `flags_of` -> its values. The value of `NAME_file` is a file with the text of
        condition NAME.
        If a condition is a single number, a Python tuple gives several values.

    Raises:
      ConfigError: a value that its condition does not allow, or different numbers of values.
    """
    columns: dict[str, list[np.ndarray]] = {}
    flags: dict[str, str] = {}  # of each condition
    for flag, texts in given.items():
        name, in_file = _condition_of(flag, known)
        if name in columns:
            first, second = sorted((flags[name], flag), key=lambda f: f.endswith("_file"))
            raise ConfigError(f"--{first} and --{second} are both given: leave one out.")
        field, flags[name] = known[name], flag
        if in_file:
            files = [at_home(file, f"--{flag}") for file in texts]
            texts = [
                read_file(f"--{flag}", file).removesuffix("\n").removesuffix("\r") for file in files
            ]
        columns[name] = [
            _value(flag, part, field) for text in texts for part in _several(text, field)
        ]
    return _in_turn(columns)


def from_values(known: Mapping[str, Field], values: Mapping[str, Any]) -> Rows:
    """The rows that Python values name: of each condition one for all, or a list of them.

    Args:
      known: the conditions of the method.
      values: condition -> a text, a number, an array of the field's shape, a list of these, or one
        array of several. `NAME_file` names a file with the text of condition NAME.

    Raises:
      ConfigError: a value that does not fit its condition, or lists of different lengths.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for name, value in values.items():
        if name not in known:
            rows = parse(known, {name: _listed(value)})
            columns |= {key: [row[key] for row in rows] for key in rows[0]}
            continue
        field = known[name]
        if np.ndim(value) > len(field.shape) and hasattr(value, "dtype"):
            columns[name] = list(_column(name, name, np.asarray(value), field))
            continue
        columns[name] = [
            _column(name, name, np.asarray(one)[None], field)[0]
            if hasattr(one, "dtype")
            else _value(name, str(one), field)
            for one in _listed(value)
        ]
    return _in_turn(columns)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _in_turn(columns: Mapping[str, Sequence[np.ndarray]]) -> Rows:
    """One row for each value of the longest column."""
    count = max(map(len, columns.values()), default=0)
    for name, values in columns.items():
        if len(values) not in (1, count):
            numbers = ", ".join(f"{len(v)} of {n}" for n, v in columns.items())
            raise ConfigError(
                f"--{name}: {numbers}. Expected one value for all samples, or the same number for "
                "every condition."
            )
    return [
        {name: values[i % len(values)] for name, values in columns.items()} for i in range(count)
    ]


def flags_of(known: Mapping[str, Field]) -> list[str]:
    """The flags of conditions."""
    named = dict(known)
    if TEXT in known and _is_text(known[TEXT]) and PROMPT not in known:
        named[PROMPT] = known[TEXT]
    return [flag for name, f in named.items() for flag in (name, f"{name}_file")[: 1 + _is_text(f)]]


def _condition_of(flag: str, known: Mapping[str, Field]) -> tuple[str, bool]:
    """The condition that a flag of `flags_of` gives, and whether it names a file."""
    in_file = flag not in known and flag.endswith("_file")
    name = flag.removesuffix("_file") if in_file else flag
    return TEXT if name not in known else name, in_file


def _is_text(field: Field) -> bool:
    return field.kind == "text"


def _several(text: str, field: Field) -> list[str]:
    """The values of a Python tuple or list if the condition is one number; else the text itself."""
    if tuple(field.shape) == () and text[:1] in ("(", "["):
        try:
            return [str(value) for value in literal(text)]
        except (ValueError, TypeError):
            pass
    return [text]


def _value(flag: str, text: str, field: Field) -> np.ndarray:
    if field.kind not in _INLINE_KINDS:
        text = at_home(text, f"--{flag}")
    try:
        return modalities.find(field).parse(text, field)
    except ConfigError as error:
        raise ConfigError(f"--{flag}: {error}") from error


def read(known: Mapping[str, Field], file: str) -> Rows:
    """The rows of a file: .csv or .jsonl with one column per condition, or .npz with one array.

    File names in it are relative to its folder.

    Raises:
      ConfigError: the file is missing, of another type or empty, or a column is not a condition.
    """
    path = Path(file)
    flag = f"--conditions={file}"
    if path.suffix not in (".csv", ".jsonl", ".npz"):
        raise ConfigError(f"{flag}: expected a .csv, .jsonl or .npz file, or a split of the data.")
    try:
        if path.suffix == ".npz":
            columns = _arrays(flag, path)
            _check_names(flag, known, columns)
            checked = {name: _column(flag, name, v, known[name]) for name, v in columns.items()}
            return [dict(zip(columns, row, strict=True)) for row in _zip(flag, checked)]
        text = read_file("--conditions", file)
        if path.suffix == ".csv":
            records = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            records = json_lines.all_rows(text)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{flag} cannot be read: {error}.") from error
    rows = []
    for number, row in enumerate(records, 1):
        if None in row:  # the csv module's key for values beyond the last column
            raise ConfigError(f"{flag}, row {number}: more values than columns.")
        _check_names(f"{flag}, row {number}", known, row)
        values = {}
        for name, value in row.items():
            where, field = f"conditions, row {number}, {name}", known[name]
            if value is None:
                raise ConfigError(f"--{where}: expected a text or a number, but there is no value.")
            text = str(value) if field.kind in _INLINE_KINDS else _beside(path, str(value))
            values[name] = _value(where, text, field)
        rows.append(values)
    if not rows:
        raise ConfigError(f"{flag} has no rows.")
    return rows


def _arrays(flag: str, path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(npz.Arrays(path))
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _column(flag: str, name: str, values: np.ndarray, field: Field) -> np.ndarray:
    """The array of a condition, in the field's dtype.

    Raises:
      ConfigError: a wrong shape or dtype, a class or token that the field does not have, or a
        number outside its range.
    """
    inner = values.shape[1:]
    shape_fits = len(inner) == len(field.shape) and values.ndim
    shape_fits = shape_fits and all(
        want in (None, got) for got, want in zip(inner, field.shape, strict=True)
    )
    if not shape_fits or not np.can_cast(values.dtype, field.dtype, "same_kind"):
        axes = ", ".join(["N", *("any" if side is None else str(side) for side in field.shape)])
        raise ConfigError(
            f"{flag}: {name} has shape {list(values.shape)} and dtype {values.dtype}; expected "
            f"{np.dtype(field.dtype)} of shape [{axes}]."
        )
    vocabulary = field.facts.get("num_classes") or field.facts.get("vocabulary_size")
    least = -1 if None in field.shape else 0  # -1 pads shorter texts
    if vocabulary and not ((values >= least) & (values < vocabulary)).all():
        noun = "classes" if "num_classes" in field.facts else "tokens"
        raise ConfigError(f"{flag}: {name}: expected {noun} from 0 to {vocabulary - 1}.")
    check_range(f"{flag}: {name}", values, field)
    return values.astype(field.dtype)


def _zip(flag: str, columns: Mapping[str, np.ndarray]) -> list[tuple[Any, ...]]:
    if not columns:
        raise ConfigError(f"{flag} has no arrays.")
    if len({len(column) for column in columns.values()}) != 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise ConfigError(f"{flag}: arrays of different lengths ({sizes}).")
    if not len(next(iter(columns.values()))):
        raise ConfigError(f"{flag} has no rows.")
    return list(zip(*columns.values(), strict=True))


def _beside(path: Path, text: str) -> str:
    """The file named `text` in the folder of `path` if there is one; else `text`."""
    neighbour = path.parent / text
    return str(neighbour) if "\n" not in text and len(text) < 256 and neighbour.is_file() else text


def _check_names(where: str, known: Mapping[str, Field], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{where}: {name!r} is not a condition of this run. "
                + (f"Nearest: {nearest(name, known)}." if known else "It has none.")
            )


# ---- held-out examples ---------------------------------------------------------------------------


def in_data(known: Mapping[str, Field], spec: DataSpec) -> dict[str, str]:
    """Condition -> its field of the data, for conditions that have one."""
    fields = {name: field.facts.get("field", name) for name, field in known.items()}
    return {name: field for name, field in fields.items() if field in spec.fields}


def held_out(source: Any, num: int, transform: Transform | None = None) -> dict[str, np.ndarray]:
    """`num` examples of a split as one batch, spread over all of the split, the same every time.

    If the split is smaller, its examples are repeated in turn. `transform` is the one for
    evaluations; its random draws for an example are always the same.

    Raises:
      ConfigError: the split is empty.
    """
    if not len(source):
        raise ConfigError("the split has no examples to take conditions from.")
    order = sources.order(len(source))
    chosen = order[np.arange(num) % len(order)]
    if transform is None:
        return sources.take(source, chosen)
    rows = [transform(source[int(i)], np.random.default_rng(int(i))) for i in chosen]
    return sources.stack(rows)
