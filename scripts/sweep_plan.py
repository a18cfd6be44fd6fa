"""From grids of commands to the processes of a sweep: braces, cells of seeds, run folders
(docs/sweeps.md)."""

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

import interrupts  # noqa: E402, F401, I001
import runlog  # noqa: E402

MAX_COMMANDS = 100_000  # of one sweep, and most seeds of a command: more is a typing error
MAX_DEPTH = 20  # of braces within braces
THREAD_CAPS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)


def refuse_control_characters(flag: str, text: str) -> None:
    """Raises UserError: control characters. A newline, for example, would add a line to a generated
    script or a table."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        problem = f"{flag} {text!r}: has a newline or another control character"
        raise runlog.UserError(f"{problem}; leave it out")


def read_grids(words: Sequence[str], stdin) -> list[str]:
    """The grids of the command line, with - replaced by those on standard input (one per line, #
    for comments). Raises UserError: standard input has none, or is not text."""
    read = []
    if "-" in words:
        try:
            lines = [line.strip() for line in stdin or ()]  # None: it is closed
        except UnicodeDecodeError:
            raise runlog.UserError("-: standard input is not text; give one grid a line") from None
        read = [line for line in lines if line and not line.startswith("#")]
        if not read:
            raise runlog.UserError("-: standard input has no grid; give one a line")
    grids = []
    for word in words:
        grids += read if word == "-" else [word]
    return grids


def first_brace(text: str) -> tuple[str, range | list[str], str] | None:
    """(text before it, its integers or its alternatives, text after it) of the first brace; None
    if there is none. Raises UserError: braces that do not match."""
    start = text.find("{")
    before = text if start < 0 else text[:start]
    if "}" in before:
        raise runlog.UserError(f"{text}: there is a }} without its {{; balance the braces")
    if start < 0:
        return None
    cuts = _cuts(text, start)
    after = text[cuts[-1] + 1 :]
    alternatives = [text[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    bounds = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", ",".join(alternatives))
    if not bounds:
        return before, alternatives, after
    if max(map(len, bounds.groups())) > 18:  # int() takes no more than 4,300 digits
        problem = f"{text}: a bound has more than 18 digits"
        raise runlog.UserError(f"{problem}; a sweep has at most {MAX_COMMANDS:,} commands")
    first = int(bounds[1])
    last = int(bounds[2])
    integers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return before, integers, after


def _cuts(text: str, start: int) -> list[int]:
    """Positions of the brace that opens at `start`, of its commas, and of its closing brace."""
    cuts = [start]
    depth = 1
    for i in range(start + 1, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
        if depth == 0 or (depth == 1 and text[i] == ","):
            cuts.append(i)
        if depth == 0:
            return cuts
    raise runlog.UserError(f"{text}: there is a {{ without its }}; balance the braces")


def count_commands(text: str, depth: int = 0) -> int:
    """How many commands `expand` would make, without making them. Raises UserError as it does."""
    if depth > MAX_DEPTH:
        problem = f"a grid has more than {MAX_DEPTH} braces within braces"
        raise runlog.UserError(f"{problem}; write several grids")
    number = 1
    while found := first_brace(text):
        _, alternatives, text = found
        if isinstance(alternatives, range):
            number *= abs(alternatives.stop - alternatives.start)  # len() fails beyond 2^63
        else:
            number *= sum(count_commands(alternative, depth + 1) for alternative in alternatives)
    return number


def expand(text: str) -> list[str]:
    """Every combination of the braces in `text`, the first brace varying slowest, as in bash:
    {a,b} alternatives, empty or nested ones too; {1..10} integers. Unlike in bash an alternative
    may hold spaces, and {a} is a. Raises UserError: braces that do not match.
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
    """The commands of all grids. Raises UserError: a wrong grid, an empty command, or far too many
    commands."""
    total = 0
    for grid in grids:
        number = count_commands(grid)
        total += number
        if total > MAX_COMMANDS:
            excess = f"more than {MAX_COMMANDS:,} commands in all"
            if number > MAX_COMMANDS:
                excess = f"{number:,} commands"
            raise runlog.UserError(f"{grid}: makes {excess}; a sweep has at most {MAX_COMMANDS:,}")
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
    """The names of the project's training scripts: the files beside figures.py that have Args and
    runs_of."""
    names = []
    for path in sorted(ROOT.glob("*.py")):
        text = path.read_text()
        if "class Args" in text and "def runs_of" in text:
            tree = ast.parse(text)
            if defines(tree, "Args") and defines(tree, "runs_of"):
                names.append(path.stem)
    return names


def load_script(name: str) -> ModuleType:
    """The module whose Args are the script's flags, imported once: the script's own, or that of the
    project's script which it imports (a file that adds an activation, README). Raises UserError: no
    such file, no Args, or no runs_of, which gives the runs of a set of flags."""
    path = _path_of_args(name)
    module = path.stem
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        problem = f"{name}: cannot be imported"
        try:
            with runlog.errors_are_user_errors(problem, "run it directly to see why"):
                spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]


def _path_of_args(name: str) -> Path:
    """The file that defines the Args of the script `name`, found without importing it."""
    path = next((path for path in (Path(name), ROOT / name) if path.is_file()), None)
    if path is None or path.suffix != ".py":
        remedy = f"a command begins with one, such as {own_scripts()[-1]}.py"
        raise runlog.UserError(f"{name}: is not a script here; {remedy}")
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError) as error:
        problem = f"{name}: cannot be read as a Python script ({str(error).splitlines()[0]})"
        raise runlog.UserError(f"{problem}; fix it first") from None
    if not defines(tree, "Args"):
        known = own_scripts()
        imported = _imported(tree)
        used = [script for script in known if script in imported]
        if not used:
            problem = f"{name}: has no class Args, and imports none of {', '.join(known)}"
            raise runlog.UserError(problem)
        return ROOT / f"{used[0]}.py"
    if not defines(tree, "runs_of"):
        problem = f"{name}: has no function runs_of(args), which gives the runs of its flags"
        raise runlog.UserError(f"{problem}; add one, as the project's scripts have")
    if b"__main__" not in source:
        remedy = 'begin its last part with if __name__ == "__main__":'
        raise runlog.UserError(f"{name}: would run when imported; {remedy}")
    return path


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
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
            args = runlog.parse_args(module.Args, words)
    except SystemExit:
        problem = output.getvalue().strip().removeprefix("error: ")
        problem = problem or "prints its flags and trains nothing"
        raise runlog.UserError(f"{command}: {problem}") from None
    for field in ("fresh", "evaluate", "print_network"):
        if getattr(args, field, False):
            problem = f"{command}: --{field.replace('_', '-')} cannot be used in a sweep"
            raise runlog.UserError(f"{problem}, which resumes runs")
    with naming(command):
        if hasattr(args, "seed"):
            runlog.check_range(args, "[0, inf)", "seed")
        if hasattr(args, "num_seeds"):
            runlog.check_range(args, "[1, inf)", "num_seeds")
    if getattr(args, "num_seeds", 1) > MAX_COMMANDS:
        raise runlog.UserError(f"{command}: --num-seeds {args.num_seeds}: at most {MAX_COMMANDS:,}")
    return args


def check_settings(module: ModuleType, args, command: str) -> None:
    """Runs the script's own check of its flags, if it has a function for that: unknown activations
    and environments, numbers out of range. Not for a file that only imports the script, and may add
    activations and environments when it runs. Raises UserError, naming the command."""
    check = getattr(module, "check_settings", None)
    if check is not None:
        with naming(command):
            check(args)


def split_seed(words: Sequence[str]) -> tuple[list[str], int | None]:
    """The words without `--seed N`, and N; None if there is none or if --num-seeds gives the number
    of seeds."""
    names = [word.partition("=")[0].replace("_", "-") for word in words]
    if "--num-seeds" in names or "--seed" not in names:
        return list(words), None
    place = names.index("--seed")
    following = words[place + 1 : place + 2]
    after = place + 2
    value = "".join(following)
    if "=" in words[place]:
        value = words[place].partition("=")[2]
        after = place + 1
    if not value.isdigit():
        return list(words), None
    return [*words[:place], *words[after:]], int(value)


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
        names = [word.partition("=")[0].replace("_", "-") for word in words]
        if runs_dir is not None and "--runs-dir" not in names:
            words += ["--runs-dir", runs_dir]
        seeds = cells.setdefault((script, *words), [])
        if seed is not None:
            seeds.append(seed)
    return cells


def group_seeds(seeds: Sequence[int], max_size: int) -> list[list[int]]:
    """Groups of consecutive seeds, of at most `most`: [1, 2, 3, 7], 2 gives [[1, 2], [3], [7]]."""
    groups = []
    for seed in sorted(set(seeds)):
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < max_size:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def plan(
    commands: Sequence[str], runs_dir: str | None, seeds_per_process: int, threads: int
) -> list[dict]:
    """The processes of a sweep, as in the manifest (sweep_task). Raises UserError: a wrong command,
    or a run that two processes would train.

    runs_dir: for commands that name none. seeds_per_process: at most; 0 = all. threads: per
    process.
    """
    env = dict.fromkeys(THREAD_CAPS, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    common = {"cwd": os.getcwd(), "python": sys.executable, "env": env}
    processes = []
    owners = {}  # folder of a run -> the command that trains it
    for (script, *words), seeds in make_cells(commands, runs_dir).items():
        for argv, group, runs in plan_cell(script, words, seeds, seeds_per_process, threads):
            folders = [str(run.folder) for run in runs]
            if _are_planned(folders, argv, owners):  # grids overlap
                continue
            owners |= dict.fromkeys(folders, argv)
            name = _process_name(runs[0], group)
            path = script if Path(script).is_file() else str(ROOT / script)
            process = {"id": name, "argv": [path, *argv[1:]], "runs": folders, **common}
            processes.append(process)
    return processes


def plan_cell(
    script: str, words: Sequence[str], seeds: Sequence[int], seeds_per_process: int, threads: int
) -> Iterator[tuple[list[str], list[int], list[runlog.Run]]]:
    """(command, its seeds, its runs) of each process of a cell; a command without a seed of its own
    is one process, whose seeds are []."""
    module = load_script(script)
    # A script that can train several seeds, but by default trains one, trains the seeds of a cell
    # together; for others each seed gets a process.
    is_batch = getattr(module.Args, "num_seeds", None) == 1
    max_size = seeds_per_process or len(seeds)
    parsed = None
    for group in group_seeds(seeds, max_size if is_batch else 1) or [[]]:
        argv = [script, *words]
        changes = {}
        if group:
            argv += ["--seed", str(group[0])]
            changes["seed"] = group[0]
        if len(group) > 1:
            argv += ["--num-seeds", str(len(group))]
        if group and is_batch:
            changes["num_seeds"] = len(group)
        if parsed is None:  # once for all seeds of a cell: it takes longer than all the rest
            parsed = parse(module, argv[1:], shlex.join(argv))
            if Path(module.__file__).name == Path(script).name:
                check_settings(module, parsed, shlex.join(argv))
        if getattr(parsed, "env_threads", None) == 0:
            argv += ["--env-threads", str(threads)]
        with naming(shlex.join(argv)):
            runs = list(module.runs_of(dataclasses.replace(parsed, **changes)))
        if not runs:
            problem = f"{shlex.join(argv)}: trains nothing"
            raise runlog.UserError(f"{problem}; give every list at least one value")
        yield argv, group, runs


def _are_planned(folders: Sequence[str], argv: Sequence[str], owners: dict) -> bool:
    """Whether another process trains all of these runs. Raises UserError: only some of them."""
    shared = [folder for folder in folders if folder in owners]
    if shared and len(shared) < len(folders):
        both = f"{shlex.join(argv)} and {shlex.join(owners[shared[0]])}"
        remedy = "give every seed once (--num-seeds sets how many a command has)"
        raise runlog.UserError(f"{both} share runs, such as {shared[0]}; {remedy}")
    return bool(shared)


def _process_name(run: runlog.Run, group: Sequence[int]) -> str:
    """The name of its first run, with the last seed: `...__s1-3__...`."""
    label, first, digest = run.name.rsplit("__", 2)
    last = f"-{group[-1]}" if len(group) > 1 else ""
    return f"{label}__{first}{last}__{digest}"


# ---- what to call the processes in a table -------------------------------------------------------


def labels(processes: Sequence[dict]) -> dict[str, str]:
    """id -> what distinguishes a process from the others: the values of the flags that differ, such
    as "crational, seeds 1-10"; for a single process, the script's name."""
    settings = [_settings(process["argv"]) for process in processes]
    differing = []
    for key in dict.fromkeys(itertools.chain.from_iterable(settings)):
        if len({values.get(key) for values in settings}) > 1:
            differing.append(key)
    named = {}
    for process, own in zip(processes, settings):
        parts = [_setting_text(key, own[key]) for key in differing if key in own]
        named[process["id"]] = ", ".join(parts) or own["script"]
    return named


def _settings(argv: Sequence[str]) -> dict[str, str]:
    """flag -> its values, "" of a switch; the script's name, and "seeds" for the seeds."""
    settings = {"script": Path(argv[0]).stem}
    key = None
    for word in argv[1:]:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            key = name.replace("_", "-")
            settings[key] = value
        elif key is not None:
            settings[key] = f"{settings[key]} {word}".strip()
    number = settings.pop("num-seeds", "1")
    seed = settings.pop("seed", "")
    if seed.isdigit() and number.isdigit():
        last = int(seed) + int(number) - 1
        settings["seeds"] = seed if number == "1" else f"{seed}-{last}"
    return settings


def _setting_text(key: str, value: str) -> str:
    """A setting in a label: words stand alone, numbers get the name of their flag."""
    if not value:
        return key
    if key == "seeds":
        return f"seeds {value}" if "-" in value else f"seed {value}"
    short = " ".join(word.rpartition("/")[2] for word in value.split())
    return f"{key} {short}" if re.match(r"[-.\d]", short) else short
