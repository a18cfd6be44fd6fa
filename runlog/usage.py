"""`--help` of a script: its module's docstring, and its flags in groups.

The flags are the fields of a dataclass; the help of each is the comment on its line (or the string
below it). A separate comment line starts a group; its text up to a semicolon is the title:

    # network
    width: int = 512  # units of the last hidden layer

A field that is itself a dataclass forms a separate group, `--rational.form` and so on.
"""

import ast
import dataclasses
import inspect
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator

import tyro

NARROWEST = 40
WIDEST = 120
FIRST_COLUMN = 30  # width of the flags, if the terminal is at least twice as wide
KINDS = {int: "INT", float: "FLOAT", str: "TEXT"}


class Flag(typing.NamedTuple):
    """invocation: `--seed INT`."""

    group: str
    invocation: str
    help: str


def describe(cls) -> str | None:
    """The docstring of the module that defines `cls`; None if there is none."""
    module = sys.modules.get(getattr(cls, "__module__", ""))
    return inspect.cleandoc(module.__doc__) if module and module.__doc__ else None


def has_groups(cls) -> bool:
    """Whether a dataclass has comment lines that name groups, in a source that can be read."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return False
    try:
        return any(group for group, _ in _written(cls).values())
    except (OSError, TypeError, SyntaxError):  # created dynamically, not written in a file
        return False


def width() -> int:
    """Columns for the help text: those of the terminal, or of the variable COLUMNS."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def format_help(cls, prog: str, columns: int) -> str:
    """The whole help, in lines of at most `columns` characters unless a single word is longer."""
    flags = list(flags_of(cls))
    others = [flag.invocation for flag in flags if not flag.invocation.startswith("--")]
    parts = [" ".join(["usage:", prog, *others, "[--FLAG VALUE ...]"])]
    description = describe(cls)
    if description:
        parts.append(wrapped(description, columns))
    groups = {}
    for flag in flags:
        groups.setdefault(flag.group, []).append(flag)
    groups["help"] = [Flag("help", "-h, --help", "print this help and exit")]
    for title, flags in groups.items():
        lines = [f"{title}:"]
        for flag in flags:
            lines += _entry(flag, columns)
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def flags_of(cls, prefix: str = "", group: str = "flags") -> Iterator[Flag]:
    """Every flag in the order of the fields, those of nested dataclasses as --rational.form."""
    written = _written(cls)
    kinds = typing.get_type_hints(cls)
    marks = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        own_group, text = written.get(field.name, ("", ""))
        group = own_group or group
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            nested = f"{prefix}{field.name}."
            yield from flags_of(kind, nested, f"{field.name} (--{nested}*)")
            continue
        name = field.name.replace("_", "-")
        invocation = f"--{prefix}{name} {_metavar(kind)}"
        if tyro.conf.Positional in getattr(marks[field.name], "__metadata__", ()):
            invocation = f"{name.upper()} ..."
        elif kind is bool:
            invocation = f"--{prefix}{name}, --{prefix}no-{name}"
        yield Flag(group, invocation, f"{text} (default: {_default(field)})".strip())


def _metavar(kind) -> str:
    """The placeholder shown after a flag of this type.
    >>> _metavar(tuple[int, ...]), _metavar(float | None), _metavar(typing.Literal["A", "B"])
    ('INT ...', 'FLOAT', '{A,B}')
    """
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin in (types.UnionType, typing.Union):
        return "|".join(_metavar(part) for part in inner if part is not type(None))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"{_metavar(inner[0])} ..."
    if origin is tuple:
        return " ".join(map(_metavar, inner))
    return KINDS.get(kind, "VALUE")


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)


def _written(cls) -> dict[str, tuple[str, str]]:
    """field -> (the group that starts with it, or "", and its help), from the source. Raises
    OSError, TypeError or SyntaxError if there is no source."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = ast.parse(source).body[0].body
    found = {}
    for node, following in zip(body, [*body[1:], None]):
        if not isinstance(node, ast.AnnAssign):
            continue
        group = ""
        above = lines[node.lineno - 2].strip()
        if above.startswith("# "):
            group = above[2:].partition(";")[0]
        last_line = lines[node.end_lineno - 1].encode()  # ast counts bytes
        comment = last_line[node.end_col_offset :].decode().strip()
        text = comment.removeprefix("#").strip()
        if not text and isinstance(following, ast.Expr):
            text = " ".join(ast.literal_eval(following.value).split())
        found[node.target.id] = group, text
    return found


def _entry(flag: Flag, columns: int) -> list[str]:
    """A flag and its help, side by side where there is room."""
    first_column = FIRST_COLUMN if columns >= 2 * FIRST_COLUMN else 6
    indent = " " * first_column
    room = columns - first_column
    text = textwrap.wrap(flag.help, room, break_long_words=False, break_on_hyphens=False)
    head = f"  {flag.invocation}"
    if len(head) + 2 > first_column:
        return [head, *(indent + line for line in text)]
    return [head.ljust(first_column) + text[0], *(indent + line for line in text[1:])]


def wrapped(text: str, columns: int) -> str:
    """Wraps paragraphs to the terminal; indented ones, which are commands, keep their lines."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(" "):
            lines = []
            for line in paragraph.splitlines():
                lines += _wrapped_command(line, columns)
            paragraphs.append("\n".join(lines))
        else:
            paragraphs.append(textwrap.fill(" ".join(paragraph.split()), columns))
    return "\n\n".join(paragraphs)


def _wrapped_command(line: str, columns: int) -> list[str]:
    """Continues a command longer than the terminal on further lines, after backslashes. Commands
    with quotes are not wrapped, since a backslash would break inside them."""
    if len(line) <= columns or "'" in line or '"' in line:
        return [line]
    lines = textwrap.wrap(
        line.strip(),
        columns - 2,
        initial_indent="    ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{text} \\" for text in lines[:-1]] + lines[-1:]
