"""Errors meant for the person at the keyboard."""

from collections.abc import Mapping


class InputError(ValueError):
    """Unusable input or arguments: the command line prints it as one line and exits with status 2.

    ``str(error)`` is always a single line, so it can be logged, shown in a browser or compared in a
    test: what is wrong (with the flag or file and the value it had), what is allowed, and the fix.

    Attributes:
        what: What is wrong, naming the flag, file or field and its value.
        allowed: What would have been accepted; empty when `what` says it already.
        fix: What to do about it, as an instruction; empty when `allowed` makes it plain.
    """

    def __init__(self, what: str, allowed: str = "", fix: str = ""):
        self.what = _one_line(what)
        self.allowed = _one_line(allowed)
        self.fix = _one_line(fix)
        parts = [self.what]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        super().__init__("; ".join(parts))

    def __reduce__(self):
        # The message is composed, so rebuilding from `args` alone (the default) would nest it when
        # the error crosses a process boundary, as it does from a data-loading worker.
        return type(self), (self.what, self.allowed, self.fix)


class BadPrompts(InputError):
    """Some prompts of a list cannot be used; nothing was drawn yet.

    Attributes:
        problems: What is wrong, by place in the list, from 0. All other prompts can be drawn.
    """

    def __init__(self, problems: Mapping[int, InputError]):
        self.problems = dict(problems)
        first, *_ = self.problems.values()
        others = ", ".join(str(place + 1) for place in list(self.problems)[1:])
        more = f" (nor can these be used: {others})" if others else ""
        super().__init__(first.what + more, first.allowed, first.fix)

    def __reduce__(self):
        return type(self), (self.problems,)


class RunFailed(RuntimeError):
    """A run that ended by itself, for a reason that is no fault of the arguments.

    The command line prints it as one line, without a traceback, and exits with status 1.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    return " ".join(str(text).split()).rstrip(".;")
