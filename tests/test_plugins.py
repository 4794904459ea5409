"""Names into factories: every folder, every fault, and the signature as the schema."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fedkd import offers as offers_module
from fedkd import plugins
from fedkd.config import ConfigError, Named
from fedkd.parameters import check

ROOT = Path(plugins.__file__).resolve().parents[1]
Positive = Annotated[float, Field(gt=0)]

SHARPEN = '''
"""A method for the tests."""
from __future__ import annotations
from typing import Annotated
from pydantic import Field

Positive = Annotated[float, Field(gt=0)]


def sharpen_test(temperature: Positive = 0.1) -> dict:
    """Sharpen by a temperature.

    More text.
    """
    return {"temperature": temperature}
'''


@pytest.fixture(autouse=True)
def _clean_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, and the interpreter's import state put back afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    for name in [m for m in sys.modules if m.startswith(("strategies", "simulations", "user_"))]:
        if name not in modules or "." not in name:
            del sys.modules[name]
    sys.path[:] = path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def refusal(kind: Any, name: str, search: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        plugins.resolve(kind, name, search)
    return str(caught.value)


def python(code: str, cwd: Path, *path: Path) -> Any:
    """What a fresh interpreter prints as JSON, started in `cwd` with `path` before our own root."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_file_in_the_working_directory_is_found() -> None:
    write(Path("strategies/sharpen_test.py"), SHARPEN)
    made = plugins.build("strategy", Named(name="sharpen_test"), where="strategy")
    assert made == {"temperature": 0.1}


def test_a_file_in_a_search_folder_is_found_and_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "far/simulations/user_help.py", "VALUE = 3\n")
    write(
        tmp_path / "far/simulations/busy.py",
        "from simulations.user_help import VALUE\n\ndef busy():\n    return VALUE\n",
    )
    assert plugins.resolve("world", "busy", (str(tmp_path / "far"),))() == 3
    assert str(tmp_path / "far") in sys.path
    plugins.resolve("world", "busy", (str(tmp_path / "far"),))
    assert sys.path.count(str(tmp_path / "far")) == 1


def test_a_package_in_the_working_directory_adds_to_the_built_in_ones(tmp_path: Path) -> None:
    """Built-in ones are simulated by a copy of our package beside a `strategies/` folder."""
    home = tmp_path / "home"
    for file in (ROOT / "fedkd").glob("*.py"):
        write(home / "fedkd" / file.name, file.read_text(encoding="utf-8"))
    write(home / "strategies/built_in.py", "def built_in():\n    return 'built in'\n")
    write(tmp_path / "user/strategies/__init__.py", "raise RuntimeError('is not run')\n")
    write(
        tmp_path / "user/strategies/mine.py",
        "import strategies.built_in as b\n\ndef mine():\n    return 'mine, ' + b.built_in()\n",
    )
    code = """
        import json
        from fedkd.plugins import offers, resolve
        print(json.dumps([
            sorted({"built_in", "mine"} & {o.name for o in offers("strategy")}),
            resolve("strategy", "mine")(), resolve("strategy", "built_in")(),
            resolve("strategy", "strategies.mine:mine")(),
        ]))
    """
    expected = [["built_in", "mine"], "mine, built in", "built in", "mine, built in"]
    assert python(code, tmp_path / "user", home) == expected


def test_a_package_that_was_already_imported_is_extended(tmp_path: Path) -> None:
    write(tmp_path / "user/strategies/__init__.py", "HERE = 1\n")
    write(tmp_path / "user/strategies/mine.py", "def mine():\n    return 1\n")
    write(tmp_path / "far/strategies/other.py", "def other():\n    return 2\n")
    code = f"""
        import json, strategies
        from fedkd.plugins import resolve
        far = ({str(tmp_path / "far")!r},)
        found = [resolve("strategy", n, far)() for n in ("mine", "other")]
        print(json.dumps([*found, strategies.HERE]))
    """
    assert python(code, tmp_path / "user") == [1, 2, 1]


def test_what_the_driver_finds_another_process_finds_with_its_search_folders(
    tmp_path: Path,
) -> None:
    user, library, elsewhere = (tmp_path / n for n in ("user", "library", "elsewhere"))
    elsewhere.mkdir()
    write(user / "strategies/__init__.py", "")
    write(user / "strategies/mine.py", "def mine():\n    return 'mine'\n")
    write(user / "user_models.py", "def net():\n    return 'net'\n")
    write(library / "simulations/late.py", "def late():\n    return 'late'\n")
    code = (
        "import json; from fedkd.plugins import search_folders; print(json.dumps(search_folders()))"
    )
    found = python(code, user, library)
    assert found[0] == str(user.resolve()) and str(library.resolve()) in found
    assert str(ROOT) not in found
    code = f"""
        import json
        from fedkd.plugins import resolve
        names = [("strategy", "mine"), ("model", "user_models:net"), ("world", "late")]
        print(json.dumps([resolve(k, n, {found!r})() for k, n in names]))
    """
    assert python(code, elsewhere) == ["mine", "net", "late"]


def test_other_search_folders_take_the_earlier_ones_and_their_modules_away(tmp_path: Path) -> None:
    for run in "ab":
        write(tmp_path / run / "strategies/mine.py", f"def mine():\n    return {run!r}\n")
        write(tmp_path / run / "user_net.py", f"def net():\n    return {run!r}\n")
    for run in "abba":
        search = (str(tmp_path / run),)
        assert plugins.resolve("strategy", "mine", search)() == run
        assert plugins.resolve("model", "user_net:net", search)() == run
        assert plugins.resolve("strategy", "mine")() == run  # no folders: nothing changes
    assert str(tmp_path / "b") not in sys.path


def test_two_files_of_one_name_are_refused_and_both_are_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one/strategies/twice.py", "def twice():\n    return 1\n")
    two = write(tmp_path / "two/strategies/twice.py", "def twice():\n    return 2\n")
    text = refusal("strategy", "twice", (str(tmp_path / "one"), str(tmp_path / "two")))
    assert str(one) in text and str(two) in text and "more than once" in text


def test_the_same_bytes_twice_are_one_offer(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "strategies/twice.py", "def twice():\n    return 1\n")
    search = (str(tmp_path / "one"), str(tmp_path / "two"))
    assert plugins.resolve("strategy", "twice", search)() == 1
    assert [o.name for o in plugins.offers("strategy", search)].count("twice") == 1


def test_unrelated_folders_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "foreign/strategies/__init__.py", "raise SystemExit('foreign')\n")
    write(tmp_path / "foreign/strategies/mine.py", "import nothing_of_that_name\n")
    write(tmp_path / "foreign/strategies/broken.py", "def broken(:\n")
    write(tmp_path / "user/strategies/mine.py", "def mine():\n    return 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "foreign"))
    search = (str(tmp_path / "user"),)
    assert plugins.resolve("strategy", "mine", search)() == "mine"
    found = {o.name: o for o in plugins.offers("strategy", search)}
    assert found["mine"].origin == str(tmp_path / "user/strategies/mine.py")
    assert found["broken"].summary.startswith("unusable: syntax error in line 1")


def installed(tmp_path: Path, name: str, target: str) -> None:
    info = tmp_path / "site/outside-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    write(info / "entry_points.txt", f"[fedkd.strategies]\n{name} = {target}\n")
    source = 'def far_out(n: int = 2):\n    """From afar."""\n    return n\n'
    write(
        tmp_path / "site/user_outside/__init__.py", "raise RuntimeError('offers must not import')\n"
    )
    write(tmp_path / "site/user_outside/methods.py", source)


def test_entry_points_offer_names_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "far_out", "user_outside.methods:far_out")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    offer = next(o for o in plugins.offers("strategy") if o.name == "far_out")
    assert (offer.summary, offer.signature) == ("From afar.", "(n: int=2)")
    assert "of outside 1.0" in offer.origin
    (tmp_path / "site/user_outside/__init__.py").write_text("", encoding="utf-8")
    assert plugins.resolve("strategy", "far_out")() == 2


def test_an_entry_point_against_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "mine", "user_outside.methods:far_out")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    file = write(Path("strategies/mine.py").absolute(), "def mine():\n    return 1\n")
    text = refusal("strategy", "mine")
    assert str(file) in text and "entry point mine = user_outside.methods:far_out" in text


def test_an_entry_point_that_leads_to_the_file_itself_is_the_same_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "mine", "strategies.mine:mine")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    write(Path("strategies/mine.py"), "def mine():\n    return 1\n")
    assert plugins.resolve("strategy", "mine")() == 1


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("x = 1\ndef bad(:\n", ["bad.py, line 2", "def bad(:"]),
        ("import no_such_thing_at_all\n", ["ModuleNotFoundError", "bad.py, line 1"]),
        ("x = 1\n1 / 0\n", ["ZeroDivisionError", "bad.py, line 2"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit", "bad.py, line 2"]),
        ("def bed():\n    return 1\n", ["bad.py has no bad", "did you mean bed?"]),
        ("bad = 3\n", ["bad in", "must be a function", "found int"]),
    ],
)
def test_a_faulty_file_is_one_message(source: str, parts: list[str]) -> None:
    write(Path("strategies/bad.py"), source)
    text = refusal("strategy", "bad")
    assert text.startswith("strategy: ") and "\n" not in text
    for part in parts:
        assert part in text


def test_a_directory_that_hides_the_file_is_refused() -> None:
    write(Path("strategies/mine.py"), "def mine():\n    return 1\n")
    write(Path("strategies/mine/__init__.py"), "")
    assert "hides the file" in refusal("strategy", "mine")


def test_an_unknown_name_lists_what_there_is_and_where_it_was_looked_for() -> None:
    write(Path("strategies/sharpen_test.py"), SHARPEN)
    text = refusal("strategy", "sharpen-test")
    assert "'sharpen-test' (did you mean sharpen_test?)" in text
    assert str(Path("strategies").absolute()) in text and "there are" in text
    assert "fedkd.models" in refusal("model", "no_such_model")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("no_such_package.nets:net", "there is no module no_such_package.nets"),
        ("json:lods", "did you mean loads?"),
        ("json:", "should read pkg.mod:factory"),
        ("../x:y", "should read pkg.mod:factory"),
        ("a:b:c", "should read pkg.mod:factory"),
        ("json:__name__", "must be a function that can be called, found str"),
    ],
)
def test_a_faulty_path_to_a_factory_is_one_message(name: str, part: str) -> None:
    assert part in refusal("model", name)


def test_offers_of_a_module_are_its_own_documented_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = '''
        from json import dumps
        raise RuntimeError("offers must not import")

        def mlp(hidden: int, *, depth: int = 2):
            """A perceptron.

            More.
            """

        def _private():
            """Hidden."""

        def undocumented(): ...

        class Net:
            """A class."""
    '''
    write(tmp_path / "fedkd/models.py", source)
    monkeypatch.setattr(offers_module, "__file__", str(tmp_path / "fedkd/offers.py"))
    assert [(o.name, o.summary, o.signature) for o in plugins.offers("model")] == [
        ("mlp", "A perceptron.", "(hidden: int, *, depth: int=2)")
    ]


def test_offers_of_a_folder_are_described_without_an_import() -> None:
    write(Path("strategies/sharpen_test.py"), SHARPEN + "\nraise RuntimeError\n")
    write(Path("strategies/from_file.py"), '"""What the file says."""\ndef from_file(): ...\n')
    write(Path("strategies/_private.py"), "def _private(): ...\n")
    write(Path("strategies/imported.py"), "from json import dumps as imported\n")
    write(Path("strategies/lacking.py"), "def other(): ...\n")
    write(Path("strategies/a_class.py"), "class a_class: ...\n")
    found = {o.name: o for o in plugins.offers("strategy")}
    assert found["sharpen_test"].summary == "Sharpen by a temperature."
    assert found["sharpen_test"].signature == "(temperature: Positive=0.1)"
    assert found["from_file"].summary == "What the file says."
    assert not {"_private", "imported", "lacking", "a_class"} & set(found)
    assert "strategies.sharpen_test" not in sys.modules


def built(source: str, params: dict[str, Any], *args: object, **options: Any) -> object:
    """`made` of a file in a folder of its own: Python does not read a changed file again."""
    folder = Path.cwd() / f"run{len(list(Path.cwd().iterdir()))}"
    text = "from __future__ import annotations\n" + textwrap.dedent(source)
    write(folder / "strategies/made.py", text)
    spec, search = Named(name="made", **params), (str(folder),)
    return plugins.build("strategy", spec, *args, search=search, where="strategy", **options)


def fault(source: str, params: dict[str, Any], *args: object, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        built(source, params, *args, **options)
    return str(caught.value)


def factory(
    temperature: Positive = 0.1,
    size: int = 3,
    flag: bool = False,
    betas: tuple[float, float] = (0.0, 0.0),
    auto: int | Literal["auto"] = "auto",
    table: dict[str, list[int]] | None = None,
) -> None:
    """Take one of each."""


def checked(**params: Any) -> dict[str, Any]:
    return check(factory, params, taken=0, label="factory", where="x")


def test_values_are_read_as_annotated() -> None:
    values = checked(temperature=1, betas=[0, 0.5], auto="auto", table={"a": [1]}, flag=True)
    assert values == {
        "temperature": 1.0, "betas": (0.0, 0.5), "auto": "auto", "table": {"a": [1]}, "flag": True,
    }  # fmt: skip
    assert isinstance(values["temperature"], float) and isinstance(values["betas"], tuple)


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"temperature": 0}, "x.temperature: should be greater than 0, found 0; factory takes "
         "temperature: float = 0.1"),
        ({"temperature": float("nan")}, "x.temperature: should be greater than 0, found nan"),
        ({"temperature": True}, "x.temperature: should be a valid number, found True"),
        ({"temperature": "1e-3"}, "x.temperature: should be a valid number, found '1e-3' (text; "
         "write 0.001 without quotes)"),
        ({"size": 3.0}, "x.size: should be a valid integer, found 3.0"),
        ({"size": False}, "x.size: should be a valid integer, found False"),
        ({"flag": 1}, "x.flag: should be a valid boolean, found 1"),
        ({"betas": [0.1]}, "x.betas.1: field required"),
        ({"betas": [0.1, "b"]}, "x.betas.1: should be a valid number, found 'b'"),
        ({"auto": "atuo"}, "x.auto: should be a valid integer or should be 'auto', found 'atuo'"),
        ({"table": {"a": ["b"]}}, "x.table.a.0: should be a valid integer, found 'b'"),
        ({"temprature": 1}, "x.temprature: factory has no such parameter (did you mean "
         "temperature?); it takes temperature: float = 0.1, size: int = 3"),
        ({"size": object()}, "x: the parameters must be plain YAML values"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(params: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(**params)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(temperature=-1, size="x", colour="red")
    assert len(str(caught.value).splitlines()) == 3


def test_missing_and_filled_parameters() -> None:
    source = "def made(rows, size: int, depth: int = 1):\n    return rows, size, depth\n"
    assert built(source, {"size": 2}, "rows") == ("rows", 2, 1)
    text = fault(source, {}, "rows")
    assert text.startswith(
        "strategy.size: is required by made and was not given; it takes size: int"
    )
    assert "strategy.rows: made has no such parameter" in fault(
        source, {"rows": 1, "size": 2}, "rows"
    )
    assert "must take 4 positional arguments" in fault(source, {}, 1, 2, 3, 4)


def test_odd_signatures() -> None:
    assert built("def made(*, name_: str = 'a', **more):\n    return more\n", {"b": 1}) == {"b": 1}
    assert built("def made(copy: int = 0, json=None):\n    return copy, json\n", {"copy": 1}) == (
        1,
        None,
    )
    unknown = "def made(a: Nowhere = 1):\n    return a\n"
    assert built(unknown, {}) == 1
    assert "Nowhere" in fault(unknown, {"a": 1})
    kind = "class made:\n    def __init__(self, n: int):\n        self.n = n\n"
    assert vars(built(kind, {"n": 1})) == {"n": 1}
    partial = "import functools\ndef f(a: int, b: int):\n    return a, b\n"
    partial += "made = functools.partial(f, b=2)\n"
    assert built(partial, {"a": 1}) == (1, 2)


def test_what_a_factory_raises_or_returns_is_checked() -> None:
    source = "def made(n: int = 0):\n    raise ValueError('n: should be odd, found 0')\n"
    assert fault(source, {}) == "strategy: n: should be odd, found 0"
    with pytest.raises(ConfigError, match=r"made should work .*, found KeyError: 'k'; ") as caught:
        built("def made():\n    return {}['k']\n", {})
    assert isinstance(caught.value.__cause__, KeyError)
    text = fault("def made():\n    return 3\n", {}, expect=(dict, list))
    assert "should return dict or list, found int" in text and "made.py" in text


def test_one_check_serves_many_calls() -> None:
    write(Path("strategies/made.py"), "def made(client, n: int = 0):\n    return client + n\n")
    make = plugins.bind("strategy", Named(name="made", n=5), taken=1, where="strategy")
    assert [make(i) for i in range(3)] == [5, 6, 7]


def test_nothing_heavy_is_imported() -> None:
    code = """
        import json, sys
        import fedkd.plugins
        print(json.dumps(sorted({"torch", "flwr", "ray", "numpy"} & set(sys.modules))))
    """
    assert python(code, Path.cwd()) == []


def test_the_namespaces_import_in_the_ordinary_way_too() -> None:
    write(Path("strategies/sharpen_test.py"), SHARPEN)
    resolved = plugins.resolve("strategy", "sharpen_test")
    assert importlib.import_module("strategies.sharpen_test").sharpen_test is resolved
