"""A language model from the command line: training, prompts, what it leaves, and wrong input."""

import re
from pathlib import Path

import pytest
from command_line import ROOT, Cli, metrics

from genjax import config as configs
from genjax.data import catalogue, tokenizers
from genjax.interop import huggingface
from genjax.main import main

WORDS = "the quick brown fox jumps over the lazy dog. " * 200
SMALL = [
    f"--config={ROOT / 'configs' / 'gpt_char.py'}:tiny",
    "--config.dataset.name=text",
    "--config.dataset.text.tokenizer=characters",
    "--config.dataset.text.length=16",
    "--config.dataset.validation=10_percent",
    "--config.duration=60_steps",
    "--config.schedule.warmup=5_steps",
    "--config.optimizer.learning_rate=3e-3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a whole run on a file of one's own; to be read only."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "words.txt").write_text(WORDS)
    Cli(folder).run(
        *SMALL, f"--config.dataset.path={folder / 'words.txt'}", f"--workdir={folder / 'run'}"
    )
    return folder / "run"


@pytest.fixture
def said(run, capsys):
    """Runs a command on the run in this process: what it prints, of an error the message."""

    def command(*arguments, code=0):
        assert main([f"--workdir={run}", *arguments]) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    return command


def test_a_run_leaves_its_tokenizer_and_texts_to_read(run):
    assert (run / "tokenizer.json").is_file()
    texts = sorted((run / "samples").iterdir())
    assert [p.name for p in texts] == ["step_00000030.txt", "step_00000060.txt"]
    assert texts[1].read_text().startswith("===== sample 1 of 2: 257 tokens =====\n")
    assert texts[1].read_text().split("\n")[1][:6] in (run / "report.html").read_text()
    last = [line for line in metrics(run) if "eval/loss" in line][-1]
    assert {"eval/perplexity", "eval/bits_per_byte", "eval/distinct_2", "eval/loss_se"} <= set(last)
    assert last["eval/bits_per_byte"] == pytest.approx(last["eval/loss"] / 0.6931472, rel=1e-4)


def test_texts_go_on_from_a_prompt(said):
    options = ("--mode=sample", "--prompt=the quick ", "--num=2", "--max_new_tokens=12")
    out = said(*options)
    texts = re.findall(r"=====\n(.*)\n", out)
    assert [text[:10] for text in texts] == ["the quick "] * 2
    assert [len(text) for text in texts] == [22, 22]
    path = re.search(r"wrote (\S+\.txt) and", out)[1]
    assert texts[0] in Path(path).read_text(encoding="utf-8")
    assert said(*options) == out
    greedy = re.findall(r"=====\n(.*)\n", said(*options, "--temperature=0"))
    assert greedy[0] == greedy[1]
    ended = said(*options, "--temperature=0", f"--stop={greedy[0][12:14]}")
    assert re.findall(r"=====\n(.*)\n", ended)[0] == greedy[0][:14]
    banned = said(*options, "--banned=o", "--allowed=fox ")
    assert set("".join(text[10:] for text in re.findall(r"=====\n(.*)\n", banned))) <= set("fx ")


@pytest.mark.parametrize("options", [("--max_new_tokens=30", "--temperature=0"), ("--beams=2",)])
def test_several_prompts_are_each_gone_on_from_as_if_alone(said, options):
    """Past the positions, and to the end of what beams have of them."""

    def texts(*flags):
        return re.findall(r"=====\n(.*)\n", said("--mode=sample", *options, *flags))

    many = [f"--prompt={prompt}" for prompt in ("the quick ", "fox", "the lazy")]
    expected = [*texts(many[0]), *texts(many[1]), *texts(many[2])]
    assert texts(*many) == expected
    if "--beams=2" in options:
        assert {len(text) for text in expected} == {17}  # 16 positions, and one more
    else:
        assert texts(*many, "--num=4") == [*expected, expected[0]]


def test_a_text_is_told_as_it_comes(said):
    whole = said(
        "--mode=sample", "--prompt=the ", "--num=1", "--max_new_tokens=30", "--temperature=0"
    )
    told = said(
        "--mode=sample", "--prompt=the ", "--stream", "--max_new_tokens=30", "--temperature=0"
    )
    assert re.findall(r"=====\n(.*)\n", whole) == [told.rstrip("\n")]


def test_beams_go_on_from_a_prompt_as_far_as_there_is_room(said):
    (text,) = re.findall(
        r"=====\n(.*)\n", said("--mode=sample", "--prompt=the quick ", "--beams=2")
    )
    assert text.startswith("the quick ")
    assert len(text) == 17  # 16 positions, and one more


def test_a_drawn_text_is_told_as_it_is_drawn(said):
    options = ("--mode=sample", "--prompt=the ", "--max_new_tokens=20", "--seed=3")
    (whole,) = re.findall(r"=====\n(.*)\n", said(*options))
    assert said(*options, "--stream").rstrip("\n") == whole


def test_what_was_trained_can_be_exported(run, said, tmp_path, capsys):
    said("--mode=export", f"--output={tmp_path / 'out'}")
    found = huggingface.read(tmp_path / "out")
    assert (found.vocabulary_size, found.length) == (28, 16)
    other = f"--workdir={tmp_path / 'imported'}"
    config = f"--config={ROOT / 'configs' / 'import_lm.py'}"
    assert main([config, f"--config.weights={tmp_path / 'out'}", other]) == 0
    greedy = ("--mode=sample", "--prompt=the qu", "--max_new_tokens=10", "--temperature=0")
    before = re.findall(r"=====\n(.*)\n", said(*greedy))
    assert main([other, *greedy]) == 0
    assert re.findall(r"=====\n(.*)\n", capsys.readouterr().out) == before
    assert before[0].startswith("the qu")


def test_a_tokenizer_is_trained_by_one_command_and_used_by_another(tmp_path, capsys):
    (tmp_path / "words.txt").write_text(WORDS)
    path, file = tmp_path / "bpe" / "tokenizer.json", f"{tmp_path / 'words.txt'}"
    own = [f"--config={ROOT / 'configs' / 'gpt.py'}:tiny", "--config.dataset.name=text"]
    own += ["--config.dataset.validation=", f"--config.dataset.path={file}"]
    trained = ["--config.dataset.text.tokenizer=bpe", "--config.dataset.text.vocabulary_size=300"]
    command = [*own, *trained, "--mode=tokenizer", f"--output={path}"]
    assert main(command) == 0
    made = tokenizers.read(path)
    assert f"wrote {path}, {made.vocabulary_size} different" in capsys.readouterr().out
    assert made.vocabulary_size <= 300
    assert made.decode(made.encode("the lazy dog")) == "the lazy dog"
    assert len(made.encode("the lazy dog")) == 3
    dataset = configs.load(own[0][9:], {"dataset.name": "text", "dataset.path": file}).dataset
    dataset.validation = ""
    dataset.text.tokenizer = str(path)
    assert catalogue.load(dataset).spec.generated.facts["tokenizer"] == made
    assert main(command) == 1
    assert f"{path} already exists" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["export", "tokenizer"])
def test_what_writes_one_file_is_for_one_process(said, tmp_path, monkeypatch, mode):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    message = said(f"--mode={mode}", f"--output={tmp_path / 'out'}", code=1)
    assert f"--mode='{mode}': expected one process" in message
    assert not (tmp_path / "out").exists()


def test_images_have_no_tokenizer(tmp_path, capsys):
    config = f"--config={ROOT / 'configs' / 'vae.py'}:tiny"
    assert main([config, "--mode=tokenizer", f"--output={tmp_path / 'a.json'}"]) == 1
    assert "is not text" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_texts_are_judged_by_what_is_said_of_texts(said):
    out = dict(line.split(" ") for line in said("--mode=eval", "--samples=validation").splitlines())
    assert {"distinct_1", "self_bleu", "samples"} <= set(out)
    assert int(out["samples"]) == len(WORDS) // 10 // 16


def test_texts_are_no_images_to_judge(said):
    asked = ("--mode=eval", "--samples=validation", "--config.evals.judges=fidelity")
    assert "fidelity judges images, but 'token' of" in said(*asked, code=1)


def test_texts_are_judged_by_references(said, tmp_path):
    ours, right = tmp_path / "ours.txt", tmp_path / "right.txt"
    ours.write_text("the lazy dog\nthe quick brown fox jumps\n")
    right.write_text("the lazy dog\nthe quick brown fox jumped\n")
    flags = ("--mode=eval", f"--samples={ours}", f"--references={right}")
    out = dict(line.split(" ") for line in said(*flags).splitlines())
    assert out["texts"] == "2"
    # sacrebleu 2.6.0: corpus_bleu(ours, [right]).score and corpus_chrf(ours, [right]).score
    assert float(out["bleu"]) == pytest.approx(72.312690, abs=1e-3)
    assert float(out["chrf"]) == pytest.approx(93.171683, abs=1e-3)
    assert float(out["distinct_1"]) == 7 / 8
    right.write_text("one\n")
    assert "2 texts and 1 references" in said(*flags, code=1)
    assert "nowhere" in said("--mode=eval", "--samples=nowhere", f"--references={right}", code=1)
    assert "--samples" in said("--mode=eval", f"--references={right}", code=1)


def test_eval_repeats_the_evaluation_of_training(run, said):
    last = [line for line in metrics(run) if "eval/loss" in line][-1]
    assert f"eval/bits_per_byte {last['eval/bits_per_byte']:.6g}\n" in said("--mode=eval")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt="], ["--prompt", "at least one character"]),
        (["--prompt=the Q"], ["'Q'", "offset 4"]),
        (["--prompt=a", "--prompt_file=b"], ["both"]),
        (["--prompt_file=nowhere.txt"], ["nowhere.txt", "No such file"]),
        (["--prompt=" + "the " * 9], ["36 tokens", "16 positions"]),
        (["--top_p=2"], ["top_p", "2"]),
        (["--min_new_tokens=10000000000"], ["min_new_tokens=10000000000", "from 0 to 16777216"]),
        (["--beams=0"], ["beams"]),
        (["--beams=True"], ["--beams=True", "a whole number"]),
        (["--temperature=1e39", "--allowed=the"], ["temperature=1e+39", "1e+06"]),
        (["--seed=99999999999999999999"], ["--seed=99999999999999999999", "64 bits"]),
        (["--num=99999999999"], ["--num=99999999999", "1 to 1048576"]),
        (["--beams=2", "--num=3"], ["--num=3", "--beams"]),
        (["--prompt=a", "--prompt=b"], ["--num=1", "at least 2"]),
        (["--beams=2", "--stream"], ["--stream", "--beams"]),
        (["--max_new_tokens=few"], ["max_new_tokens='few'", "a whole number"]),
        (["--label=7"], ["--label=7", "no such condition"]),
        (["--conditions=words.csv", "--prompt=a"], ["--conditions and --prompt are both"]),
        (["--max_new_tokens=1000000000000"], ["max_new_tokens", "16777216"]),
        (["--beams=2", "--length_penalty=2000"], ["length_penalty=2000", "-5 to 5"]),
        (["--stop="], ["--stop=''", "at least one character"]),
        (["--stop=Q"], ["--stop='Q'", "the tokenizer knows"]),
        (["--tempature=1"], ["--tempature", "temperature"]),
        (["--decode=f"], ["--decode", "no such"]),
        (["--prompt=a", "--mode=eval"], ["'--prompt=a' is not understood"]),
    ],
)
def test_wrong_prompts_and_options(said, arguments, expected):
    mode = () if "--mode=eval" in arguments else ("--mode=sample", "--num=1")
    message = said(*mode, *arguments, code=1)
    (error,) = [line for line in message.splitlines() if not line.startswith("drawing ")]
    assert error.startswith("error: ")
    assert all(word in error for word in expected), message


def test_one_prompt_is_told_as_it_comes(said):
    message = said("--mode=sample", "--prompt=the", "--prompt=fox", "--stream", code=1)
    assert "conditions=2: expected one with --stream" in message


def test_a_prompt_that_is_no_utf8(said, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"the \xff")
    message = said("--mode=sample", f"--prompt_file={tmp_path / 'prompt.txt'}", code=1)
    assert "is not UTF-8: byte 0xff at offset 4" in message


def test_another_tokenizer_is_refused(run, said, tmp_path):
    own = (run / "tokenizer.json").read_text()
    try:
        (run / "tokenizer.json").write_text(own.replace("abc", "abd"))
        assert "not the tokenizer" in said("--mode=sample", "--num=1", code=1)
        (run / "tokenizer.json").unlink()
        assert "is missing" in said("--mode=sample", "--num=1", code=1)
    finally:
        (run / "tokenizer.json").write_text(own)


def test_a_prompt_is_for_text(finished_run, capsys):
    assert main([f"--workdir={finished_run}", "--mode=sample", "--prompt=a"]) == 1
    assert "--prompt=a: this run has no such condition" in capsys.readouterr().err
    assert main([f"--workdir={finished_run}", "--mode=sample", "--stream"]) == 1
    assert (
        "--stream is for methods that generate text, and method 'diffusion' does not"
        in capsys.readouterr().err
    )
