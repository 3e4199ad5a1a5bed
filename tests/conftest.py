"""Eight simulated CPU devices, and a persistent compilation cache."""

import gc
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
import tokenizers
from parts import left_out

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Half the time to compile; later versions have no other emitters.
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "genjax" / "xla_tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Compiling is most of what tests do: the machine code need not be the fastest.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402  (reads the environment)


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests of whole runs that are not in GENJAX_TEST_PART."""
    folder = f"{Path(__file__).parent.name}/"
    names = {item: item.nodeid.removeprefix(folder) for item in items}
    absent = left_out(list(names.values()), os.environ.get("GENJAX_TEST_PART", "all"))
    config.hook.pytest_deselected(items=[item for item in items if names[item] in absent])
    items[:] = [item for item in items if names[item] not in absent]


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """What one file has compiled is of no use to the next: it would fill the memory."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def fuzz_seed():
    """What random draws of tests begin with: GENJAX_FUZZ_SEED, or 0."""
    seed = int(os.environ.get("GENJAX_FUZZ_SEED", "0"))
    yield seed
    print(f"GENJAX_FUZZ_SEED={seed}")  # shown of a test that fails


@pytest.fixture(scope="session")
def library():
    """oneDNN. What it computes cannot be tested on a machine that has no place for it."""
    from genjax.data.packages import cache_root
    from genjax.nn.cpu import onednn

    try:
        return onednn.load(cache_root() / "onednn")
    except onednn.Unavailable as error:
        if re.search("no oneDNN on|no AVX2|no C[+][+] compiler", str(error)):
            pytest.skip(f"no place for oneDNN: {error}")
        raise  # it is not installed, or does not build


@pytest.fixture
def foreign(tmp_path):
    """A tokenizer.json of the kind that Llama has, with truncation, written by the library."""
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0)]
    vocabulary += [(c, -3.0) for c in "theo"] + [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    inner = tokenizers.Tokenizer(
        tokenizers.models.Unigram(vocabulary, unk_id=0, byte_fallback=True)
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = (tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace())
    inner.decoder = tokenizers.decoders.Sequence(list(parts))
    inner.add_special_tokens(["<s>", "</s>", "[SEP]"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    inner.enable_truncation(2)
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path
