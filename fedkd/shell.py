"""What all command lines share: faults told in words, exit codes, an end that can be gone on from.

Exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.faults import ConfigError

# failures that say in full what happened; any other is told with the name of its class
_IN_WORDS = {"BudgetSpent", "ClientFailure", "TooFew", "DiskError", "ReportError"}


def answered(do: Callable[[], int], debug: bool) -> int:
    """Do it, and return its exit code; whatever it raises is told on standard error."""
    try:
        with ended_by_signal():
            return do()
    except ConfigError as error:
        return _failed(debug, 2, str(error))
    except KeyboardInterrupt as error:
        return _failed(debug, 130, "\n".join(["interrupted", *notes(error)]))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        text = str(error).partition("\nTraceback (most recent call last)")[0].strip()
        if type(error).__name__ not in _IN_WORDS:
            text = ": ".join(filter(None, (type(error).__name__, text.partition("\n")[0])))
        return _failed(debug, 1, "\n".join([text, *notes(error), "--debug shows where"]))


def typed(word: str) -> str:
    """A command as whoever reads its help has called it: `fedkd WORD` where that was typed."""
    called = Path(sys.argv[0]) if sys.argv else Path()
    if called.stem == "fedkd":
        return f"fedkd {word}".rstrip()
    if called.parts[-2:] == ("fedkd", "__main__.py"):
        return f"python -m fedkd {word}".rstrip()
    return f"python -m fedkd.{word}".rstrip(".")


def as_typed(text: str) -> str:
    """A help text whose commands are those of whoever reads it; columns stay below each other."""
    return re.sub(r"python -m fedkd\.(\w+)", lambda found: typed(found[1]), text)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Being told to end is what being interrupted is: what is done is kept, and can be resumed.

    Foreign code turns the interruption into an error of its own, where it is importing, or into an
    exit, as Ray does while it starts; where it swallows it in a destructor, it comes once more.
    """
    told = False

    def end(number: int, frame: object) -> None:
        nonlocal told
        told = True
        raise KeyboardInterrupt

    def swallowed(unraisable: Any) -> None:  # Any: sys.UnraisableHookArgs is no class at run time
        if issubclass(unraisable.exc_type, (KeyboardInterrupt, SystemExit)):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            hook(unraisable)

    ours = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody has it ignored
        ours.append(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        ours = []
    hook, before = sys.unraisablehook, {n: signal.signal(n, end) for n in ours}
    try:
        if ours:
            sys.unraisablehook = swallowed
        yield
    except (Exception, SystemExit) as error:
        if not told and not isinstance(error, SystemExit):
            raise
        interrupted = KeyboardInterrupt()
        for note in notes(error):
            interrupted.add_note(note)
        raise interrupted from error
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def notes(error: BaseException) -> list[str]:
    """What was added to an error on its way: how to resume, as a rule."""
    return list(getattr(error, "__notes__", ()))


def near(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _failed(debug: bool, code: int, text: str) -> int:
    if debug:
        traceback.print_exc()
    print("\n".join(f"fedkd: {line}" for line in text.splitlines()), file=sys.stderr)
    return code
