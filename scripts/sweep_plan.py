"""From grids of commands to the processes of a sweep: braces, cells of seeds, run folders (docs/sweeps.md)."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runlog  # noqa: E402

MAX_COMMANDS = 100_000  # of one sweep; also seeds of a command: more is a slip of the finger
MAX_DEPTH = 20  # of braces within braces
THREAD_CAPS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


def refuse_control_characters(flag: str, text: str) -> None:
    """Raises UserError: a newline, say, would put a line of its own into a generated script or a table."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise runlog.UserError(f"{flag} {text!r}: has a newline or another control character; leave it out")


def read_grids(words: Sequence[str], stdin) -> list[str]:
    """The grids of the command line, those of - (a line each, # for comments) among them. Raises UserError: there is
    none on standard input, or it is no text."""
    read = []
    if "-" in words:
        try:
            lines = [line.strip() for line in stdin or ()]  # None: it is closed
        except UnicodeDecodeError:
            raise runlog.UserError("-: standard input is no text; give grids, one a line") from None
        read = [line for line in lines if line and not line.startswith("#")]
        if not read:
            raise runlog.UserError("-: standard input has no grid; give one a line")
    return [grid for word in words for grid in (read if word == "-" else [word])]


def first_brace(text: str) -> tuple[str, range | list[str], str] | None:
    """(what is before it, its integers or its alternatives, what is behind it) of the first brace; None if there is
    none. Raises UserError: braces that do not pair up."""
    start, depth, cuts = text.find("{"), 0, []
    if "}" in (text[:start] if start >= 0 else text):
        raise runlog.UserError(f"{text}: there is a }} without its {{; balance the braces")
    if start < 0:
        return None
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if i == start or depth == 0 or (depth == 1 and text[i] == ","):
            cuts.append(i)
        if depth == 0:
            break
    else:
        raise runlog.UserError(f"{text}: there is a {{ without its }}; balance the braces")
    inner = [text[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    bounds = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", ",".join(inner))
    if not bounds:
        return text[:start], inner, text[i + 1 :]
    if max(map(len, bounds.groups())) > 18:  # int() takes no more than 4,300 digits
        told = f"{text}: a bound has more than 18 digits"
        raise runlog.UserError(f"{told}; a sweep has at most {MAX_COMMANDS:,} commands")
    first, last = int(bounds[1]), int(bounds[2])
    integers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return text[:start], integers, text[i + 1 :]


def count_commands(text: str, depth: int = 0) -> int:
    """How many `expand` would make, without making them. Raises UserError as `expand` does."""
    if depth > MAX_DEPTH:
        raise runlog.UserError(f"a grid has more than {MAX_DEPTH} braces within braces; write several grids")
    number = 1
    while found := first_brace(text):
        _, alternatives, text = found
        if isinstance(alternatives, range):
            number *= abs(alternatives.stop - alternatives.start)  # len() fails beyond 2^63
        else:
            number *= sum(count_commands(each, depth + 1) for each in alternatives)
    return number


def expand(text: str) -> list[str]:
    """Every combination of the braces in `text`, the first brace varying slowest, as bash does it: {a,b} alternatives,
    empty or nested ones too; {1..10} integers. Other than in bash an alternative may hold spaces, and {a} is a.
    Raises UserError: braces that do not pair up.
    """
    made = [""]
    while found := first_brace(text):
        before, alternatives, text = found
        if isinstance(alternatives, range):
            middles = [str(x) for x in alternatives]
        else:
            middles = list(itertools.chain.from_iterable(map(expand, alternatives)))
        made = [done + before + middle for done, middle in itertools.product(made, middles)]
    return [done + text for done in made]


def expand_all(grids: Sequence[str]) -> list[str]:
    """The commands of all grids. Raises UserError: a wrong grid, an empty command, or far too many of them."""
    total = 0
    for grid in grids:
        number = count_commands(grid)
        total += number
        if total > MAX_COMMANDS:
            told = f"{number:,} commands" if number > MAX_COMMANDS else f"more than {MAX_COMMANDS:,} commands in all"
            raise runlog.UserError(f"{grid}: makes {told}; a sweep has at most {MAX_COMMANDS:,}")
    commands = []
    for grid in grids:
        made = expand(grid)
        if not all(command.strip() for command in made):
            raise runlog.UserError(f"{grid!r}: makes an empty command; begin each with a script")
        commands += made
    return commands


def defines(tree: ast.Module, name: str) -> bool:
    """Whether a module has a class or function of this name."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return any(isinstance(node, kinds) and node.name == name for node in tree.body)


def own_scripts() -> list[str]:
    """The names of the project's training scripts: what lies beside figures.py and has Args and runs_of."""
    names = []
    for path in sorted(ROOT.glob("*.py")):
        text = path.read_text()
        if "class Args" in text and "def runs_of" in text:
            tree = ast.parse(text)
            if defines(tree, "Args") and defines(tree, "runs_of"):
                names.append(path.stem)
    return names


def load_script(name: str) -> ModuleType:
    """The module whose Args are the script's flags, imported once: its own, or that of the
    project's script which it imports (a file that adds an activation, README). Raises UserError: no
    such file, or no Args, or no runs_of, which tells the runs of flags."""
    path = next((p for p in (Path(name), ROOT / name) if p.is_file()), None)
    if path is None or path.suffix != ".py":
        example = own_scripts()[-1]
        raise runlog.UserError(f"{name}: is no script here; a command begins with one, such as {example}.py")
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        told = str(error).splitlines()[0]
        raise runlog.UserError(f"{name}: cannot be read as a Python script ({told}); mend it first") from None
    module = path.stem
    if not defines(tree, "Args"):
        imported = _imported(tree)
        known = own_scripts()
        module = next((own for own in known if own in imported), None)
        if module is None:
            raise runlog.UserError(f"{name}: has no class Args, and imports none of {', '.join(known)}")
        path = ROOT / f"{module}.py"
    elif not defines(tree, "runs_of"):
        told = f"{name}: has no function runs_of(args), which gives the runs of its flags"
        raise runlog.UserError(f"{told}; add one, as the project's scripts have")
    elif b"__main__" not in path.read_bytes():
        raise runlog.UserError(f'{name}: would run when imported; begin its last part with if __name__ == "__main__":')
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            with runlog.errors_are_user_errors(f"{name}: cannot be imported", "run it by itself to see why"):
                spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]


def _imported(tree: ast.Module) -> set[str]:
    """The modules that `import ...` lines at the top level name."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@contextlib.contextmanager
def naming(command: str) -> Iterator[None]:
    """A mistake in the values of a command's flags becomes one line that names the command."""
    try:
        yield
    except ValueError as error:  # UserError among them
        raise runlog.UserError(f"{command}: {error}") from None


def parse(module: ModuleType, words: Sequence[str], command: str):
    """The command's flags. Raises UserError, naming the command."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            args = runlog.parse_args(module.Args, words)
    except SystemExit:
        told = said.getvalue().strip().removeprefix("error: ") or "tells its flags and trains nothing"
        raise runlog.UserError(f"{command}: {told}") from None
    for flag in ("fresh", "evaluate", "print_network"):
        if getattr(args, flag, False):
            raise runlog.UserError(f"{command}: --{flag.replace('_', '-')} has no place in a sweep, which resumes runs")
    for flag, interval in (("seed", "[0, inf)"), ("num_seeds", "[1, inf)")):
        if hasattr(args, flag):
            with naming(command):
                runlog.check_range(args, interval, flag)
    if getattr(args, "num_seeds", 1) > MAX_COMMANDS:
        raise runlog.UserError(f"{command}: --num-seeds {args.num_seeds}: at most {MAX_COMMANDS:,}")
    return args


def split_seed(words: Sequence[str]) -> tuple[list[str], int | None]:
    """The words without `--seed N`, and N; None if there is none or if --num-seeds tells how many."""
    text = [word.replace("_", "-") for word in words]
    if not any(word.split("=")[0] == "--num-seeds" for word in text):
        for i, word in enumerate(text):
            value = word.partition("=")[2] if word.startswith("--seed=") else "".join(words[i + 1 : i + 2])
            if word.split("=")[0] == "--seed" and value.isdigit():
                return [*words[:i], *words[i + 1 + (word == "--seed") :]], int(value)
    return list(words), None


def make_cells(commands: Sequence[str], runs_dir: str | None) -> dict[tuple[str, ...], list[int]]:
    """(script, flag, ...) -> seeds; a command without a seed of its own has none."""
    cells = {}
    for command in commands:
        try:
            script, *words = shlex.split(command)
        except ValueError as error:
            raise runlog.UserError(f"{command}: {error}; balance the quotes") from None
        for word in (script, *words):
            refuse_control_characters(f"{command!r}:", word)
        if re.fullmatch(r"(\S*/)?python[\d.]*", script):
            raise runlog.UserError(f"{command}: leave the interpreter out; begin with the script")
        words, seed = split_seed(words)
        if runs_dir is not None and not any(word.split("=")[0] in ("--runs-dir", "--runs_dir") for word in words):
            words += ["--runs-dir", runs_dir]
        seeds = cells.setdefault((script, *words), [])
        seeds += [] if seed is None else [seed]
    return cells


def group_seeds(seeds: Sequence[int], most: int) -> list[list[int]]:
    """Runs of consecutive seeds, of at most `most`: [1, 2, 3, 7], 2 gives [[1, 2], [3], [7]]."""
    groups = []
    for seed in sorted(set(seeds)):
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < most:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def plan(commands: Sequence[str], runs_dir: str | None, seeds_per_process: int, threads: int) -> list[dict]:
    """The processes of a sweep as the manifest has them (sweep_task). Raises UserError: a wrong command, or a run that
    two processes would train.

    runs_dir: for commands that name none. seeds_per_process: at most; 0 = all. threads: of a process.
    """
    processes, owners = [], {}
    env = dict.fromkeys(THREAD_CAPS, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    common = {"cwd": os.getcwd(), "python": sys.executable, "env": env}
    for (script, *words), seeds in make_cells(commands, runs_dir).items():
        module, parsed = load_script(script), None
        # A script that trains one seed unless told otherwise, and can train several; others get a process for each.
        together = getattr(module.Args, "num_seeds", None) == 1
        for group in group_seeds(seeds, seeds_per_process or len(seeds) if together else 1) or [[]]:
            own = ["--seed", str(group[0])] if group else []
            own += ["--num-seeds", str(len(group))] if len(group) > 1 else []
            if parsed is None:  # once for all seeds of a cell: it takes longer than all the rest
                parsed = parse(module, [*words, *own], shlex.join([script, *words, *own]))
            if getattr(parsed, "env_threads", None) == 0:
                own += ["--env-threads", str(threads)]
            seed = {"seed": group[0]} | ({"num_seeds": len(group)} if together else {}) if group else {}
            argv = [script, *words, *own]
            with naming(shlex.join(argv)):
                runs = module.runs_of(dataclasses.replace(parsed, **seed))
            if not runs:
                raise runlog.UserError(f"{shlex.join(argv)}: trains nothing; give every list at least one value")
            folders = [str(run.folder) for run in runs]
            shared = [folder for folder in folders if folder in owners]
            if shared and len(shared) < len(folders):
                told = f"{shlex.join(argv)} and {shlex.join(owners[shared[0]])} share runs, such as {shared[0]}"
                raise runlog.UserError(f"{told}; give every seed once (--num-seeds tells how many a command has)")
            if shared:  # grids overlap
                continue
            owners |= dict.fromkeys(folders, argv)
            label, first, digest = runs[0].name.rsplit("__", 2)
            name = f"{label}__{first}{f'-{group[-1]}' if len(group) > 1 else ''}__{digest}"
            argv[0] = script if Path(script).is_file() else str(ROOT / script)
            processes.append({"id": name, "argv": argv, "runs": folders, **common})
    return processes
