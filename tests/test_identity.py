"""Which flags define a run, as declared by the fields of `Args`.

`pytest -q tests/test_identity.py`.
"""

import dataclasses

import pytest

import runlog
from plots import variants
from runlog.identity import not_identity


@dataclasses.dataclass(frozen=True)
class Inner:
    degree: int = 3


@dataclasses.dataclass(frozen=True)
class LaterInner:
    degree: int = 3
    margin: float = dataclasses.field(default=1.0, metadata={"identity": "unless default"})


@dataclasses.dataclass
class Args:
    seed: int = 1
    env_id: str = "toy"
    activation: str = "relu"
    runs_dir: str = runlog.option("runs")
    fresh: bool = runlog.option(False)
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu
    inner: Inner = dataclasses.field(default_factory=Inner)


@dataclasses.dataclass
class LaterArgs(Args):
    warmup: int = runlog.added(0)  # steps of warm-up
    decays: tuple[float, ...] = runlog.added((0.5, 0.5))
    inner: LaterInner = dataclasses.field(default_factory=LaterInner)
    nested: Inner = dataclasses.field(
        default_factory=Inner, metadata={"identity": "unless default"}
    )


def name(args) -> str:
    (run,) = runlog.seed_runs(args, "script")
    return run.name


def test_a_field_that_changes_no_result_changes_no_name():
    assert name(Args()) == name(Args(device="cuda", runs_dir="elsewhere", fresh=True))
    assert len({name(Args()), name(Args(seed=2)), name(Args(inner=Inner(4)))}) == 3


def test_a_later_field_counts_unless_it_has_its_default():
    before = name(Args())
    assert name(LaterArgs()) == before
    changes = (
        {"warmup": 5},
        {"decays": (0.5,)},
        {"inner": LaterInner(3, 2.0)},
        {"nested": Inner(4)},
    )
    names = {name(LaterArgs(**change)) for change in changes}
    assert len({before, *names}) == 5
    assert name(LaterArgs(inner=LaterInner(4))) == name(Args(inner=Inner(4)))
    assert name(LaterArgs(warmup=5, device="cuda")) == name(LaterArgs(warmup=5))


def test_excluded_fields_are_listed_by_their_path():
    assert not_identity(Args()) == ["runs_dir", "fresh", "device"]
    assert not_identity(LaterArgs(warmup=1))[3:] == ["inner.margin", "decays", "nested"]


def test_unknown_metadata_is_an_error():
    @dataclasses.dataclass
    class Wrong:
        x: int = dataclasses.field(default=1, metadata={"identity": "maybe"})

    with pytest.raises(ValueError, match="x: its identity is 'maybe'"):
        not_identity(Wrong())


def test_help_shows_the_comment_and_the_default(capsys):
    with pytest.raises(SystemExit):
        runlog.parse_args(LaterArgs, ["--help"])
    lines = " ".join(capsys.readouterr().out.split())
    assert "auto (cuda where there is one), cpu (default: auto)" in lines.replace("│ ", "")
    assert "steps of warm-up (default: 0)" in lines
    assert runlog.parse_args(LaterArgs, ["--device", "cpu", "--warmup", "3"]).warmup == 3
    assert LaterArgs.warmup == 0 and LaterArgs.device == "auto"


@dataclasses.dataclass(frozen=True)
class Noisy:
    degree: int = 3
    verbose: bool = runlog.option(False)


@dataclasses.dataclass
class NoisyArgs(Args):
    noisy: Noisy = dataclasses.field(default_factory=Noisy, metadata={"identity": "unless default"})
    warmup: int = runlog.added(0)


def test_an_option_of_a_nested_configuration_does_not_count():
    assert name(NoisyArgs(noisy=Noisy(verbose=True))) == name(NoisyArgs()) == name(Args())
    assert name(NoisyArgs(noisy=Noisy(4, verbose=True))) == name(NoisyArgs(noisy=Noisy(4)))


def test_a_setting_given_beside_the_flags_counts():
    digests = set()
    for warmup in (0, 5, 7):
        (run,) = runlog.seed_runs(NoisyArgs(), "script", warmup=warmup)
        digests.add(run.digest)
    assert len(digests) == 3


def test_figures_see_one_setting_in_runs_from_before_and_after_a_field_was_added(tmp_path):
    """Also of a nested configuration, whose fields meta.json names with a dot."""
    folders = []
    for args in (Args(seed=1), LaterArgs(seed=2), LaterArgs(seed=3, inner=LaterInner(3, 2.0))):
        args = dataclasses.replace(args, runs_dir=str(tmp_path))
        (run,) = runlog.seed_runs(args, "script")
        run.open(tensorboard=False)
        run.load_checkpoint()
        run.log(1, {"eval/episodic_return": 1.0})
        run.finish()
        folders.append(run.folder)
    groups = variants.load(folders[:2])
    assert [run.seed for run in groups["relu"]] == [1, 2]
    with pytest.raises(runlog.UserError, match="differ in inner"):
        variants.load(folders)
