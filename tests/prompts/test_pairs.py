"""Pairs make tasks: those that ship, those of a file, those of a dict; others are refused in one line."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

import iclens
from iclens.core import ConfigError, TaskError
from iclens.prompts.arms import default_rival, other_task
from iclens.prompts.beliefs import NUMBERS, check_declared, parse_belief
from iclens.prompts.build import _drawn, draw_examples
from iclens.prompts.mixture import Mixture
from iclens.prompts.pairs import LARGEST, shipped
from iclens.prompts.tasks import Task, default_inputs, parse_task

COLOURS = {"sky": "blue", "grass": "green", "dark red": "red"}
SHIPPED = [f"pairs:{name}" for name in shipped()]
LEAST = {"animal_young": 25, "upper": 20, "lower": 20, "next_letter": 20}
"""Pairs, of the lists that the world or the alphabet keeps short; others have 40."""


# ------------------------------------------------------------------------------------------------ shipped


def test_shipped_pairs_are_valid() -> None:
    root = yaml.compose((files("iclens.prompts") / "pairs.yaml").read_text("utf-8"), yaml.BaseLoader)
    assert len(root.value) == len(shipped())
    for (name, known), (_, node) in zip(shipped().items(), root.value, strict=True):
        written = [key.value for part in node.value[-2:] for key, _ in part[1].value]
        every = {**known.pairs, **known.held_out}
        assert len(written) == len({*written}) == len(every), "no x stands twice, not even in held_out"
        assert len(known.pairs) >= LEAST.get(name, 40) and len(known.held_out) >= 4
        assert len(every) - len({*every.values()}) <= 3, "an answer is hardly ever that of two x"
        assert all(text == "".join(text.split()) != "" for pair in every.items() for text in pair)
        assert all(x != y for x, y in every.items())
        assert all((known.about, known.x, known.y)) and known.about.endswith(".")
        iclens.pairs_task("again", every)


@pytest.mark.parametrize("spec", SHIPPED)
def test_a_shipped_task_says_what_it_is(spec: str) -> None:
    task, known = parse_task(spec), shipped()[spec.removeprefix("pairs:")]
    assert task.name == spec and task == parse_task(f" {spec} ")
    assert (task.domain, task.family, task.answers, task.deterministic) == (
        "number" if spec == "pairs:number_word" else "word", "word", "word", True
    )  # fmt: skip
    assert default_inputs(task, range(3)) == task.inputs == tuple(known.pairs)
    assert task.held_out == tuple(known.held_out)
    every = {**known.pairs, **known.held_out}
    assert [task.outcomes(x) for x in every] == [{y: 1.0} for y in every.values()]


def test_the_documentation_lists_them() -> None:
    page = Path(__file__).parents[2] / "docs" / "howto" / "add_a_task.md"
    listed = re.findall(r"^\| `pairs:(\w+)` \| .* → .* \| (\d+) \| (\d+) \|$", page.read_text("utf-8"), re.M)
    counts = {name: (str(len(known.pairs)), str(len(known.held_out))) for name, known in shipped().items()}
    assert {name: tuple(numbers) for name, *numbers in listed} == counts


@pytest.mark.parametrize(
    ("spec", "x", "y"),
    [
        ("capital", "France", "Paris"), ("country_language", "Brazil", "Portuguese"), ("past", "go", "went"),
        ("present_participle", "run", "running"), ("plural", "mouse", "mice"), ("opposite", "hot", "cold"),
        ("upper", "n", "N"), ("lower", "Y", "y"), ("next_letter", "x", "y"),
        ("number_word", "21", "twenty-one"), ("animal_young", "cow", "calf"),
    ],
)  # fmt: skip
def test_facts(spec: str, x: str, y: str) -> None:
    assert parse_task(f"pairs:{spec}").answer(x) == y


def test_an_x_that_no_pair_has_is_refused() -> None:
    with pytest.raises(TaskError, match=r"task 'pairs:capital' at x='Paris': no pair has this x"):
        parse_task("pairs:capital").outcomes("Paris")


# -------------------------------------------------------------------------------------------------- files


def write(folder: Path, name: str, pairs: Mapping[str, str]) -> Path:
    texts = {
        ".jsonl": "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in pairs.items()),
        ".csv": "x,y\r\n" + "".join(f'"{x}","{y}"\r\n' for x, y in pairs.items()),
        ".yaml": "".join(f"{x}: {y}\n" for x, y in pairs.items()),
    }
    path = folder / name
    path.write_text(texts[path.suffix], encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "b.csv", "c.yaml", "my own.colours.csv"])
def test_a_file_of_each_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, COLOURS)
    task = parse_task(f"pairs:{name}")
    assert task.name == f"pairs:{name}" and task == parse_task(task.name)
    assert {x: task.answer(x) for x in task.inputs} == COLOURS and task.held_out == ()
    own = iclens.pairs_task("colours", tmp_path / name)
    assert own.name == "pairs:colours" and own.inputs == task.inputs


def test_a_changed_file_is_another_task_in_the_same_process(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", COLOURS)
    assert parse_task(f"pairs:{path}").answer("sky") == "blue"
    write(tmp_path, "a.csv", COLOURS | {"sky": "grey"})
    assert parse_task(f"pairs:{path}").answer("sky") == "grey"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("words.yaml", "no: yes\non: off\n1: one\n"),
        ("words.jsonl", '{"x": "no", "y": "yes"}\n\n{"y": "off", "x": "on", "z": 3}\n{"x": 1, "y": "one"}'),
        ("words.csv", "\ufeffz,y,x\n3,yes,no\n,off,on\n\n,one,1\n"),
    ],
)
def test_texts_are_taken_as_they_are_written(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    task = iclens.pairs_task("words", tmp_path / name)
    assert {x: task.answer(x) for x in task.inputs} == {"no": "yes", "on": "off", "1": "one"}


@pytest.mark.parametrize(
    ("pairs", "domain", "answers"),
    [
        ({"1": "one", "20": "twenty"}, "number", "word"),
        ({"one": "1", "twenty": "20"}, "word", "number"),
        ({"2": "4", "9": "81"}, "number", "number"),
        ({"-2": "4", "9": "nine"}, "word", "word"),
    ],
)
def test_kinds_are_read_from_the_texts(pairs: dict[str, str], domain: str, answers: str) -> None:
    task = iclens.pairs_task("mine", pairs)
    assert (task.domain, task.answers) == (domain, answers)


# ------------------------------------------------------------------------------------------------ refusals


def refused(said: str, make: object, *given: object) -> None:
    assert callable(make)
    with pytest.raises(TaskError) as caught:
        make(*given)
    message = str(caught.value)
    assert said in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pairs:capitol", "no such pairs. Nearest: pairs:capital"),
        ("pairs:colours", "or name a .jsonl, .csv or .yaml file"),
        ("pairs:my.tsv", "no such pairs"),
        ("pairs:", "no such pairs"),
        ("capital", "Nearest: pairs:capital"),
        ("pairs:none/there.csv", "pairs of 'none/there.csv': no such file"),
    ],
)
def test_a_spec_that_names_no_pairs_is_refused(spec: str, said: str) -> None:
    refused(said, parse_task, spec)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "from,to\nsky,blue\n", "no columns x and y in 'from,to'"),
        ("a.csv", "", "no columns x and y"),
        ("a.csv", "x,y\nsky,blue,red\n", "line 2: 3 values for 2 columns"),
        ("a.csv", 'x,y\n"sky,blue\n', "unreadable (unexpected end of data)"),
        ("a.csv", "x,y\nsky,\ngrass,green\n", "line 2: y is empty"),
        ("a.csv", "x,y\nsky, blue\n", "line 2: y has a space before or after it (' blue')"),
        ("a.csv", 'x,y\n"sky\nline",blue\n', "line 3: x holds a line break"),
        ("a.csv", "x,y\nsky,blue\ngrass,green\nsky,grey\n", "x 'sky' has two answers, 'blue' and 'grey'"),
        ("a.csv", "x,y\nsky,blue\nsky,blue\n", "1 of them. Give at least two"),
        ("a.csv", "x,y\ndozen,12\nwar,1914\n", "line 3: y is '1914'. An answer in digits"),
        ("a.csv", "x,y\nseven,007\n", "y is '007'"),
        ("a.csv", "x,y\n٣,three\n", "x is a number, but not of 1 to 18 digits"),
        ("a.jsonl", '{"x": "sky"}\n', "line 1: no object with x and y"),
        ("a.jsonl", '["sky", "blue"]\n', "line 1: no object with x and y"),
        ("a.jsonl", '{"x": "sky", "y": "blue"\n', "unreadable"),
        ("a.jsonl", '{"x": "", "y": "blue"}\n', "x is empty"),
        ("a.jsonl", '{"x": "sky", "y": null}\n', "y is None. Write a text"),
        ("a.jsonl", '{"x": "sky", "y": true}\n', "y is True. Write a text"),
        ("a.jsonl", '{"x": "sky", "y": "\\ud800"}\n', "y holds a line break or another control character"),
        ("a.yaml", "- sky\n- blue\n", "no mapping"),
        ("a.yaml", "sky: [blue, grey]\n", "line 1: more than a text"),
        ("a.yaml", "sky: blue\ngrass:\n", "line 2: y is empty"),
        ("a.yaml", "sky: blue\nsky: grey\n", "x 'sky' has two answers"),
        ("a.yaml", "sky: 'blue\n", "unreadable"),
    ],
)
def test_a_file_that_can_be_no_task_is_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused(said, parse_task, f"pairs:{tmp_path / name}")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,y\nsky,bl\xfcu\n")
    refused("unreadable", parse_task, f"pairs:{tmp_path / 'a.csv'}")
    (tmp_path / "b.csv").mkdir()
    refused("unreadable (Is a directory)", parse_task, f"pairs:{tmp_path / 'b.csv'}")


@pytest.mark.parametrize(
    ("name", "pairs", "said"),
    [
        ("capital", COLOURS, "what a spec already names"),
        ("my.csv", COLOURS, "what a spec already names"),
        ("", COLOURS, "no name on one line"),
        ("two\nlines", COLOURS, "no name on one line"),
        ("colours", {"sky": "blue"}, "task 'pairs:colours': 1 of them"),
        ("colours", {"sky": "blue", "grass": " green"}, "pair 2: y has a space before or after it"),
        ("colours", "my.txt", "pairs of 'my.txt': of no known form"),
    ],
)
def test_pairs_in_python_are_refused_alike(name: str, pairs: object, said: str) -> None:
    refused(said, iclens.pairs_task, name, pairs)


def test_a_mixture_holds_no_pairs() -> None:
    declared = {"numbers": [0, 9], "noise": {0.0: 1.0},
                "families": {"pairs": {"weight": 1.0, "tasks": ["pairs:capital"]}}}  # fmt: skip
    with pytest.raises(ConfigError, match="'pairs:capital' has inputs of its own"):
        Mixture.from_dict(declared)


# ---------------------------------------------------------------------------------------- arms and beliefs

CAPITAL = parse_task("pairs:capital")


def examples(arm: str, task: Task = CAPITAL, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw_examples(task, arm=arm, n_prompts=n, n_examples=12, seed=5)


@pytest.mark.parametrize("arm", ["T", "S", "R", "W", "Wr", "Q-", "Q0", "N3", "C2"])
def test_inline_arms_of_words(arm: str) -> None:
    x, y, answer = examples(arm)
    every = {*shipped()["capital"].pairs.values()}
    languages = np.vectorize(parse_task("pairs:country_language").answer)(x)
    assert np.array_equal(answer, np.vectorize(CAPITAL.answer)(x)) and np.array_equal(x, examples("T")[0])
    assert {*x.ravel().tolist()} <= {*CAPITAL.inputs}
    right = y == answer
    shows = {"T": answer, "W": np.hstack([answer[:, :6], languages[:, 6:]]),
             "Wr": np.hstack([languages[:, :6], answer[:, 6:]]),
             "Q-": np.hstack([languages[:, :2], answer[:, 2:]])}  # fmt: skip
    if arm in shows:
        assert np.array_equal(y, shows[arm])
    else:
        assert {*y.ravel().tolist()} <= every
    match arm:
        case "S":
            assert not right.any() and np.array_equal(np.sort(y), np.sort(answer))
        case "R":
            assert right.mean() < 0.1
        case "Q0":
            assert right[:, 2:].all() and right[:, :2].mean() < 0.2
        case "C2":
            assert not right[:, 2].any() and np.delete(right, 2, axis=1).all()
        case _:
            pass


@pytest.mark.parametrize("arm", ["D", "D2", "E1", "E3", "P"])
def test_probed_arms_of_words(arm: str) -> None:
    made, _, shown = _drawn(CAPITAL, arm, None, 3, 6, 5, None)
    assert made.contexts is not None
    for one in shown:
        contexts = made.contexts(one, np.random.default_rng(0))
        given = [{pair for pair in context if pair != ("", "")} for context in contexts]
        assert all(CAPITAL.answer(x) == y for context in given for x, y in context)
        assert [len(pairs) for pairs in given] == [min(n, {"D": 1, "D2": 2}.get(arm, n)) for n in range(6)]


@pytest.mark.parametrize("arm", ["O", "A-", "A+"])
def test_arms_of_numbers_are_refused_for_words(arm: str) -> None:
    made, _, (shown, *_) = _drawn(CAPITAL, arm, None, 1, 6, 5, None)
    with pytest.raises(TaskError, match=f"arm {arm[0]}.*of task 'pairs:capital'"):
        (made.labels or made.contexts)(shown, np.random.default_rng(0))  # type: ignore[misc]


@pytest.mark.parametrize("number", [1, 3, 9])
def test_noise_makes_so_many_of_ten_labels_wrong(number: int) -> None:
    x, y, answer = examples(f"N{number}", n=200)
    wrong = y != answer
    # 2400 labels: four standard deviations are at most 4 %.
    assert abs(wrong.mean() - number / 10) < 0.04
    assert (wrong.mean(axis=0) > number / 10 - 0.15).all(), "at every example"
    fewer = examples("N1", n=200)[1]
    assert np.array_equal(y[fewer != answer], fewer[fewer != answer]), "more noise adds to the same"
    drawn = {*y[wrong].tolist()}
    assert drawn <= {*shipped()["capital"].pairs.values()}
    assert len(drawn) == len(CAPITAL.inputs) or number == 1, "any other answer"
    assert np.array_equal(x, examples("T", n=200)[0])


def test_noise_never_shows_a_right_label_where_answers_repeat() -> None:
    task = iclens.pairs_task("two", {str(n): ("even", "odd")[n % 2] for n in range(20)})
    _, y, answer = examples("N9", task)
    assert 0.8 < (y != answer).mean() < 0.97


def test_noise_needs_a_wrong_answer_and_a_number_below_ten() -> None:
    same = iclens.pairs_task("same", {f"w{n}": "y" for n in range(12)})
    refused("no answer is wrong at x=", lambda: examples("N2", same))
    refused("N1 to N9 say how many labels of 10 are wrong", lambda: examples("N10"))
    squares = iclens.pairs_task("squares", {str(n): str(n * n) for n in range(31)})
    assert {*NUMBERS} >= {*examples("N10", squares)[1].ravel().tolist()}
    assert int(NUMBERS[-1]) == LARGEST


def test_rivals_of_shipped_pairs_have_the_same_x() -> None:
    found = {}
    for spec in SHIPPED:
        try:
            found[spec.removeprefix("pairs:")] = default_rival(parse_task(spec)).name.removeprefix("pairs:")
        except TaskError as none:
            assert "none suggests itself. Set `rival`" in str(none)
    assert found == {
        "capital": "country_language", "country_language": "capital", "past": "present_participle",
        "present_participle": "past", "upper": "next_letter", "next_letter": "upper",
    }  # fmt: skip
    for name, rival in found.items():
        x = {*shipped()[name].pairs}
        assert x <= {*shipped()[rival].pairs}
    for own in (COLOURS, {"1": "1", "2": "2"}):
        with pytest.raises(TaskError, match="none suggests itself"):
            default_rival(iclens.pairs_task("mine", own))


def test_a_control_of_pairs_answers_at_every_input() -> None:
    assert other_task("pairs:country_language", CAPITAL).name == "pairs:country_language"
    refused("it has no answer at x 'France'", other_task, "pairs:past", CAPITAL)
    refused("it has no answer at x '0'", other_task, "pairs:number_word", parse_task("2x"))
    allowed = ["1", "2"]
    assert other_task("pairs:number_word", parse_task("2x"), allowed).domain == "number"


def test_beliefs_about_pairs(tmp_path: Path) -> None:
    path = write(tmp_path, "my colours.csv", COLOURS)
    spec = f"among:pairs:{path}"
    assert parse_belief(spec).name == spec and set(parse_belief(spec).words) == {*COLOURS.values()}
    against, among = check_declared(["against:pairs:country_language", "among:pairs:capital"], CAPITAL)
    assert {"French", "Arabic"} <= {*against.words} and {*among.words} == {
        *shipped()["capital"].pairs.values()
    }
    with pytest.raises(TaskError, match="it has no value on any input"):
        check_declared(["against:pairs:past"], CAPITAL)


def test_held_out_pairs_are_drawn_when_asked_for() -> None:
    x, y, answer = draw_examples(
        CAPITAL, arm="T", n_prompts=3, n_examples=6, seed=1, inputs=CAPITAL.held_out
    )  # fmt: skip
    assert {*x.ravel().tolist()} <= {*CAPITAL.held_out} and np.array_equal(y, answer)
