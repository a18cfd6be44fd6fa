"""The runs behind a figure of the papers: the finished runs of one script, by variant and
environment, and the gaps in this grid."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import runlog
from plots.reading import Loaded, Places, places_text, read_config, read_run, runs_of_script
from plots.variants import (
    MEASURING,
    PAIRED,
    SETTINGS,
    Variant,
    by_seed,
    canonical,
    differing,
    flat,
    non_default_settings,
    sorted_variants,
)
from runlog import meta

# ---- a study -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """A gap in the grid of variants, environments and seeds."""

    variant: str
    environment: str = ""  # "": there is no run of the variant at all
    seeds: tuple[int, ...] = ()  # (): all
    status: str = ""  # of runs that have not ended

    def __str__(self) -> str:
        if not self.environment:
            return f"{self.variant} (no run)"
        words = [f"{self.variant} on {self.environment}", *(f"s{seed}" for seed in self.seeds)]
        if self.status:
            words.append(f"({self.status})")
        return " ".join(words)


MAX_NAMED = 8  # most environments, or gaps, that a caption names


def names_text(names: Sequence[str]) -> str:
    """Names for a caption: all of them, or the first MAX_NAMED and how many more; names that
    contain a comma are in quotes."""
    shown = [f'"{name}"' if "," in name else name for name in names[:MAX_NAMED]]
    further = len(names) - MAX_NAMED
    return ", ".join(shown) + (f" and {further} more" if further > 0 else "")


def missing_text(missing: Sequence[Missing]) -> str:
    """Gaps for a caption. Variants with the same gaps are named together: "sigmoid, crelu on
    SpaceInvaders"."""
    by_variant = defaultdict(list)  # variants, seeds, status: environments
    variants = defaultdict(list)  # environment, seeds, status: variants
    for gap in missing:
        variants[gap.environment, gap.seeds, gap.status].append(gap.variant)
    for (environment, seeds, status), labels in variants.items():
        by_variant[tuple(labels), seeds, status].append(environment)
    entries = []
    for (labels, seeds, status), environments in by_variant.items():
        if environments == [""]:
            entries += [f"{names_text([label])} (no run)" for label in labels]
            continue
        words = [f"{names_text(labels)} on {names_text(environments)}"]
        words += [f"s{seed}" for seed in seeds]
        if status:
            words.append(f"({status})")
        entries.append(" ".join(words))
    further = len(entries) - MAX_NAMED
    more = f" and {further} more" if further > 0 else ""
    return "; ".join(entries[:MAX_NAMED]) + more


@dataclass
class Study:
    """The finished runs of one script."""

    script: str
    cells: dict[tuple[str, str], list[Loaded]]  # (label, environment): runs by their seeds
    missing: list[Missing]
    variants: dict[str, Variant]  # by label, in order
    common: dict[str, float]  # values of the PAIRED settings that differ, unless a label has others
    reference: dict[str, list[Loaded]]  # environment: relu's runs, for HR eq. 8

    @property
    def labels(self) -> list[str]:
        return list(self.variants)

    @property
    def activation_of(self) -> dict[str, str]:
        return {label: variant.activation for label, variant in self.variants.items()}

    @property
    def environments(self) -> list[str]:
        return sorted({environment for _, environment in self.cells})

    def only(self, labels: Sequence[str]) -> "Study":
        """The study of these variants, in this order. Variants without any run are reported as
        missing; gaps of the other variants are not."""
        variants = {label: self.variants[label] for label in labels if label in self.variants}
        cells = {cell: runs for cell, runs in self.cells.items() if cell[0] in variants}
        missing = [gap for gap in self.missing if gap.variant in labels]
        known = {gap.variant for gap in missing} | {*variants}
        missing += [Missing(label) for label in labels if label not in known]
        return replace(self, cells=cells, missing=missing, variants=variants)

    def chosen(self, labels: Sequence[str]) -> "Study":
        """The variants asked for, or all; prints the other variants."""
        if not labels:
            return self
        others = [label for label in self.labels if label not in labels]
        if others:
            print(f"left out: {'; '.join(others)} (--variants names what is drawn)")
        return self.only(labels)

    def of_environment(self, environment: str) -> "Study":
        """The part of the study that is in one environment."""
        cells = {cell: runs for cell, runs in self.cells.items() if cell[1] == environment}
        missing = [gap for gap in self.missing if gap.environment in ("", environment)]
        with_runs = {label for label, _ in cells}
        variants = {label: self.variants[label] for label in self.variants if label in with_runs}
        return replace(self, cells=cells, missing=missing, variants=variants)

    def with_only_settings(self, *keys: str) -> list[str]:
        """The variants without settings of their own, except perhaps these."""
        labels = []
        for label, variant in self.variants.items():
            if not {*variant.settings} - {*keys}:
                labels.append(label)
        return labels

    def complete(self, prefix: str = "") -> list[str]:
        """Environments that every variant has and whose id begins with `prefix`."""
        found = []
        for env in self.environments:
            has_all = all((label, env) in self.cells for label in self.labels)
            if has_all and env.startswith(prefix):
                found.append(env)
        return found

    # ---- for captions ----

    @property
    def counts(self) -> str:
        """n, environments, diverged runs, what is missing."""
        numbers = [len(runs) for runs in self.cells.values()] or [0]
        fewest = min(numbers)
        most = max(numbers)
        diverged = 0
        for runs in self.cells.values():
            diverged += sum(run.has_diverged for run in runs)
        seeds = str(most) if fewest == most else f"{fewest} to {most}"
        seeds += " seeds" if most > 1 else " seed"
        number = len(self.environments)
        places = f"each of {number} environments"
        if number < 2:
            places = names_text(self.environments) or "no environment"
        text = f"n = {seeds} in {places}"
        if diverged:
            text += f", {diverged} diverged (last value carried forward)"
        for key, value in self.common.items():
            text += f"; {key.replace('_', ' ')} {value:g} unless stated"
        if fewest < 2 <= most:
            text += "; cells of one seed add nothing to the intervals"
        if self.missing:
            text += f"\nmissing: {missing_text(self.missing)}"
        return text

    def shared_notes(self) -> list[str]:
        """For statistics over environments: which they leave out, if any."""
        complete = self.complete()
        others = [env for env in self.environments if env not in complete]
        if not others:
            return []
        return [f"not in the statistics: {names_text(others)} (not of every variant)"]


# ---- reading a study -----------------------------------------------------------------------------


@dataclass
class Candidate:
    """A run folder whose settings are known."""

    folder: Path
    config: dict
    settings: dict  # flat

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def has_ended(self) -> bool:
        return self.config["status"] in meta.ENDED


def read_study(folder: Places, script: str, keys: str, where: Sequence[str] = ()) -> Study:
    """The finished runs of a script in a folder; of scalars.csv only the keys that match a pattern
    are read.

    where: settings like "utd=10" that a run must have. Raises UserError: no run, or runs that
    differ in a setting that defines no variant (SETTINGS and PAIRED do), such as their length.
    """
    candidates = find_candidates(folder, script, where)
    check_comparable(folder, script, candidates)
    common = common_values(candidates)
    variants = []
    cells = defaultdict(list)  # (label, environment): candidates
    for candidate in candidates:
        variant = variant_of(candidate, common, script)
        variants.append(variant)
        cells[variant.label, candidate.config["env_id"]].append(candidate)
    for (label, _), members in cells.items():
        check_seeds(folder, label, members)
    variants = sorted_variants(variants)
    missing = gaps(cells, variants)
    runs = read_ended(cells, keys)
    for gap in missing:
        print(f"missing: {gap}")
    if not runs:
        fault = f"no run of {script}.py has finished; run the training command again"
        raise runlog.UserError(f"--runs {places_text(folder)}: {fault}")

    with_runs = {label for label, _ in runs}
    variants = {label: variants[label] for label in variants if label in with_runs}
    reference = {env: members for (label, env), members in runs.items() if label == "relu"}
    return Study(script, runs, missing, variants, common, reference)


def read_ended(
    cells: dict[tuple[str, str], list[Candidate]], keys: str
) -> dict[tuple[str, str], list[Loaded]]:
    """The runs that have ended, in order of their seeds, of the cells that have some."""
    runs = {}
    for (label, env), members in cells.items():
        ended = [read_run(member.folder, keys) for member in members if member.has_ended]
        if ended:
            runs[label, env] = by_seed(ended, label)
    return runs


def find_candidates(folder: Places, script: str, where: Sequence[str]) -> list[Candidate]:
    """The runs of a script in a folder that have the settings asked for. Raises UserError: none."""
    candidates = []
    for path in runs_of_script(folder, script):
        config = read_config(path)
        candidates.append(Candidate(path, config, flat(config)))
    for item in where:
        key = item.partition("=")[0]
        if not any(key in candidate.settings for candidate in candidates):
            fault = f"is not a setting of the runs of {script}.py in {places_text(folder)}"
            raise runlog.UserError(f"--where {key}: {fault}")
    for item in where:
        key, _, text = item.partition("=")
        candidates = [
            candidate for candidate in candidates if is_value(candidate.settings.get(key), text)
        ]
    if not candidates:
        fault = f"no run of {script}.py with {', '.join(where)}"
        raise runlog.UserError(f"--runs {places_text(folder)}: {fault}")
    return candidates


def is_value(value: object, text: str) -> bool:
    """Whether a setting has the value given on the command line."""
    try:
        return value == json.loads(text)
    except ValueError:
        return str(value) == text


def check_comparable(folder: Places, script: str, candidates: Sequence[Candidate]) -> None:
    """Raises UserError if runs differ in a setting that defines no variant."""
    settings = [candidate.settings for candidate in candidates]
    folders = [candidate.folder for candidate in candidates]
    found = differing(settings, folders, {*SETTINGS, *PAIRED, *MEASURING, "activation", "env_id"})
    if found is None:
        return
    start = f"--runs {places_text(folder)}: runs of {script}.py"
    raise runlog.UserError(f"{start} {found.message}")


def common_values(candidates: Sequence[Candidate]) -> dict[str, float]:
    """For each PAIRED setting in which runs differ: the value that most runs have."""
    common = {}
    for key in PAIRED:
        values = [candidate.settings.get(key) for candidate in candidates]
        if len({*values}) > 1:
            common[key] = max(values, key=values.count)
    return common


def variant_of(candidate: Candidate, common: dict[str, float], script: str) -> Variant:
    """A run's variant: the short name of its activation, and its non-default settings."""
    keys = [*SETTINGS]
    for key, value in common.items():
        if candidate.settings.get(key) != value:
            keys.append(key)
    settings = non_default_settings(candidate.settings, keys, script)
    return Variant(canonical(candidate.settings["activation"]), settings)


def check_seeds(folder: Places, label: str, candidates: Sequence[Candidate]) -> None:
    """Raises UserError if a seed of a variant occurs twice in an environment, ended or not."""
    seen = {}  # seed: folder's name
    for candidate in candidates:
        seed = candidate.seed
        name = candidate.folder.name
        if seed in seen:
            fault = f"{seen[seed]} and {name} are both {label}, seed {seed}; move one away"
            raise runlog.UserError(f"--runs {places_text(folder)}: {fault}")
        seen[seed] = name


def gaps(
    cells: dict[tuple[str, str], list[Candidate]], variants: dict[str, Variant]
) -> list[Missing]:
    """The runs that have not ended, then those that do not exist, among all variants, environments
    and seeds that the folder has."""
    seeds = set()
    for members in cells.values():
        seeds |= {candidate.seed for candidate in members}
    environments = sorted({env for _, env in cells})

    unfinished = defaultdict(list)  # (label, environment, status): seeds
    for (label, env), members in cells.items():
        for candidate in members:
            if not candidate.has_ended:
                unfinished[label, env, candidate.config["status"]].append(candidate.seed)
    missing = []
    for (label, env, status), members in unfinished.items():
        missing.append(Missing(label, env, tuple(members), status))

    for label in variants:
        for env in environments:
            known = {candidate.seed for candidate in cells.get((label, env), ())}
            lacking = sorted(seeds - known)
            if lacking:
                missing.append(Missing(label, env, tuple(lacking) if known else ()))
    return missing


def try_study(runs: Places, script: str, keys: str, where: Sequence[str]) -> Study | None:
    """read_study for a figure of two algorithms: if there is nothing of this one, prints a line and
    returns None."""
    try:
        return read_study(runs, script, keys, where)
    except runlog.UserError as error:
        print(f"missing: {script}: {error}")
        return None
