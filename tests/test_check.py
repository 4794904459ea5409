"""`fedkd check`: each way of breaking the contract is named, with what was found."""

from pathlib import Path

import pytest

from fedkd import contract
from fedkd.check import main

STRATEGIES = sorted(
    p.stem for p in Path(__file__).parents[1].joinpath("strategies").glob("[a-z]*.py")
)
BROKEN = '''
"""Methods with one fault each."""
from dataclasses import replace
import torch
from fedkd.transforms import mean, party, pure, softmax
from fedkd.types import CONSENSUS, Linear, Release, Shares, Strategy

PROBS = Shares(answers="probs")


def _joint(given, weight):
    total = (given.scores * weight.unsqueeze(-1)).sum(0, keepdim=True)
    one = replace(party(given, 0), parties=torch.tensor([CONSENSUS]))
    scores = total / weight.sum(0)[None, :, None]
    return replace(one, scores=scores, mask=given.mask.any(0, keepdim=True))


def sound(power: float = 1.0):
    return Strategy(Linear(lambda p: (p.scores * p.trust.unsqueeze(-1), p.trust)))


def ignores_mask():
    return Strategy(pure(lambda p: _joint(p, torch.ones_like(p.trust))))


def goes_by_order():
    return Strategy(Linear(lambda p: (p.scores * (1 + p.parties)[:, None, None],
                                      p.trust * (1 + p.parties)[:, None])))


def leaks():
    steal = pure(lambda p: replace(p, extras={"labels": (torch.zeros(9),)}))
    return Strategy(mean(), upload=steal)


def divides_by_nothing():
    def weigh(p):
        return torch.where(p.mask, p.trust, 0)
    clean = lambda p: replace(p, scores=torch.where(p.mask.unsqueeze(-1), p.scores, 0))
    return Strategy(pure(lambda p: _joint(clean(p), weigh(p))))


def no_simplex():
    return Strategy(mean(), upload=softmax(), shares=PROBS,
                    finish=pure(lambda p: replace(p, scores=p.scores * 1.1)))


def random():
    return Strategy(mean(), finish=pure(lambda p: replace(p, scores=p.scores + torch.rand(1))))


def crashes():
    return Strategy(mean(), finish=pure(lambda p: 1 / 0))


def _look(view, model, inputs, rng):
    return torch.ones(len(inputs), dtype=torch.bool), torch.ones(len(inputs))


def hides_a_look():
    return Strategy(mean(), annotate=_look)


def declares_another_parameter():
    said = Release("gaussian", "record", {"scale": 1.0})
    return Strategy(mean(), annotate=_look, annotate_releases=(said,))


def declares_no_noise():
    said = lambda n, r: (Release("laplace", "record", {"scale": 0.0, "sensitivity": 1.0}),)
    return Strategy(mean(), train_releases=said)


def declares_another_unit():
    said = Release("number of samples, exact", "person", {})
    return Strategy(mean(), annotate=_look, annotate_releases=(said,))


def nothing():
    return {}
'''
FAULTS = {
    "ignores_mask": "masked_entries_are_never_read",
    "goes_by_order": "client_order_is_irrelevant",
    "leaks": "only_what_is_declared_is_sent",
    "divides_by_nothing": "silence_is_no_target",
    "no_simplex": "targets_lie_on_the_simplex",
    "random": "the_same_seed_gives_the_same_bits",
    "hides_a_look": "what_looks_at_private_data_says_so",
    "declares_another_parameter": "releases_are_what_the_ledger_reads",
    "declares_no_noise": "releases_are_what_the_ledger_reads",
    "declares_another_unit": "releases_are_what_the_ledger_reads",
}


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a module of faulty methods in it, and no trace of it afterwards."""
    (tmp_path / "faulty_lab.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "faulty_lab", raising=False)


@pytest.mark.parametrize("name", STRATEGIES)
def test_our_own_keep_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    *lines, empty, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(contract.EVERY) and not empty
    kept = sum(line.startswith("ok      ") for line in lines)
    assert last == f"{kept} kept, 0 broken, {len(lines) - kept} not asked"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"faulty_lab:{name}", "--quiet"]) == 1
    said = capsys.readouterr().out.split("FAILED  ")[1:]
    (law,) = (law for law in contract.EVERY if law.name == FAULTS[name])
    (told,) = (text for text in said if text.startswith(f"{law.says}\n"))
    head, expected, found, way_out = told.splitlines()
    assert head and expected.startswith("          expected  ")
    assert found.startswith("          found     ") and " clients about " in found
    assert way_out == f"          way out   {law.way_out}"


def test_what_is_found_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["faulty_lab:leaks", "--quiet"])
    said = capsys.readouterr().out
    assert "expected  nothing beside the scores" in said and "found     labels;" in said
    main(["faulty_lab:no_simplex", "--quiet"])
    assert "found     a sum of 1.1" in capsys.readouterr().out
    assert main(["faulty_lab:crashes", "--quiet", "--debug"]) == 1
    out, err = capsys.readouterr()
    assert "found     ZeroDivisionError: division by zero (" in out
    assert "faulty_lab.py, line" in out and "Traceback" in err


def test_a_file_a_function_and_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faulty_lab.py:sound", "power=2", "--quiet"]) == 0
    assert main(["faulty_lab:sound", "--quiet"]) == 0
    assert not capsys.readouterr().out
    Path("strategies").mkdir()
    Path("strategies/own_mean.py").write_text(BROKEN.replace("def sound", "def own_mean"))
    assert main(["strategies/own_mean.py", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["faulty_lab:soung"], "has no soung (did you mean sound?)"),
        (["faulty_lab:sound", "powr=2"], "no such parameter (did you mean power?)"),
        (["faulty_lab:sound", "power=big"], "strategy.power: should be a valid number"),
        (["faulty_lab:sound", "twice"], "a parameter should read param=value, found 'twice'"),
        (["faulty_lab:nothing"], "should return Strategy, found dict"),
        (["no/such/file.py"], "found no file no/such/file.py"),
        (["no_such_lab:f"], "there is no module no_such_lab"),
        (["entropi"], "there is no strategy called 'entropi' (did you mean entropy?)"),
    ],
)
def test_what_cannot_be_loaded(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and "Traceback" not in err


def test_a_file_that_another_module_stands_in_for(capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/faulty_lab.py").write_text(BROKEN)
    assert main(["faulty_lab.py:sound", "--quiet"]) == 0
    assert main(["elsewhere/faulty_lab.py:sound", "--quiet"]) == 2
    assert "should be loaded by its name faulty_lab, found the module" in capsys.readouterr().err


def test_made_up_answers_are_of_all_kinds() -> None:
    """What makes the check worth its while: every kind of answers that laws speak of is there."""
    cases = list(contract.made_up())
    assert {len(c.parties) for c in cases} == {1, 2, 3, 4, 5}
    assert {c.scores.shape[1] for c in cases} == {1, 2, 3, 4, 5, 6}
    assert any(bool(c.mask.all()) for c in cases)
    assert any(bool((~c.mask).all(0).any() and c.mask.any()) for c in cases)
    assert any(bool((c.trust != 1).any()) for c in cases)
    assert any(float(c.scores.abs().max()) > 50 for c in cases)
    assert any(not bool(c.scores.any()) for c in cases)
