"""One thought per line, in every Python file: what ruff has no rule for.

`pytest -q tests/test_style.py` (about 5 s).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {"runs", "wandb", "data", "shared", "build"}
SEQUENCES = (ast.Tuple, ast.List)
MAX_PARAMETERS = 7  # without a default, by position: more belong into a dataclass, or behind a *
EXCEPTIONS = {("environments/workers.py", "_worker"): "gymnasium calls it with these 8"}
AFTER_BRACKET = re.compile(r"\s*[])}]+[:,]?  # (?!noqa)")


def is_bool(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("bool", "isinstance", "any", "all")
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare | ast.BoolOp)


def is_text_or_list(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr | ast.Tuple | ast.List | ast.ListComp)


def fault(node: ast.AST, path: str) -> str | None:
    """What is wrong with the node by itself."""
    match node:
        case ast.Expr(value=value):
            # A docstring, `...`, a call or a yield; not a tuple of calls, and no comprehension.
            used = ast.Constant | ast.Call | ast.Await | ast.Yield | ast.YieldFrom
            return None if isinstance(value, used) else "its value is not used"
        case ast.Assign(targets=[ast.Tuple() | ast.List() as target], value=value):
            # `a, b = b, a` is one thought, and so is one value that has parts.
            if isinstance(value, SEQUENCES):
                names = {ast.unparse(part) for part in target.elts}
                if names != {ast.unparse(part) for part in value.elts}:
                    return "several assignments in one"
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            either_way = [(left, right), (right, left)]
            if any(is_bool(one) and is_text_or_list(other) for one, other in either_way):
                return "a bool that multiplies: write an if"
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            if len(node.generators) > 1:
                return "a comprehension with more than one for"
        case ast.For(iter=ast.Tuple() | ast.List() as cases) if not path.startswith("tests/"):
            # In tests a table of cases may hold lambdas.
            if any(isinstance(part, ast.Lambda) for part in ast.walk(cases)):
                return "a loop over lambdas: write the calls out"
        case ast.FunctionDef(name=name, args=args) if (path, name) not in EXCEPTIONS:
            needed = len(args.posonlyargs) + len(args.args) - len(args.defaults)
            if needed > MAX_PARAMETERS:
                return f"{needed} parameters by position"
    return None


def faults(source: str, path: str) -> Iterator[str]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if message := fault(node, path):
            yield f"{path}:{node.lineno}: {message}"
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            for field in node.body:
                # tyro shows a comment as help if it is on the field's one line.
                further = lines[field.lineno : field.end_lineno]
                if isinstance(field, ast.AnnAssign) and any("  # " in line for line in further):
                    yield f"{path}:{field.lineno}: the help is not on the flag's line"
    for number, line in enumerate(lines, 1):
        if AFTER_BRACKET.match(line):
            yield f"{path}:{number}: the comment belongs above the statement"


def test_one_thought_per_line():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        top = name.split("/")[0]
        if top not in NOT_OURS and not top.startswith("."):
            found += faults(path.read_text(encoding="utf-8"), name)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "a.close(), b.close()",
        "[part.close() for part in parts]",
        "a == b",
        "a, b = 1, []",
        "self.a, (b, c) = x, y",
        "text += ', diverged' * bool(n)",
        "losses = (n > 0) * [loss]",
        "f({a: b for a in x for b in a})",
        "for f in (lambda: 1, lambda: 2):\n    f()",
        "def f(a, b, c, d, e, f, g, h):\n    pass",
        "class Args:\n    a: int = (\n        1  # number of things\n    )",
        "f(\n    x\n)  # as above",
    ],
)
def test_each_rule_finds_its_fault(source):
    assert len([*faults(source, "x.py")]) == 1


@pytest.mark.parametrize(
    "source",
    [
        "a, b = b, a",
        "a, b = pair",
        "x = x * (x > 0)",
        "rule = '-' * 9",
        "f(\n    x,\n)  # noqa: E402",
        "class Args:\n    a: int = 1  # number of things",
        "def f(a, b, c, d, e, f, g, h=1, *, i):\n    'Words.'\n    yield",
    ],
)
def test_code_within_the_rules_has_no_faults(source):
    assert not [*faults(source, "x.py")]
