"""A W&B workspace as code: the panels that a script defines, seeds drawn as mean and spread.

    python scripts/wandb_workspace.py --entity my-team --project activations-rl
    python scripts/wandb_workspace.py --script dqn_atari.py --json workspace.json

Runs are grouped by environment, activation and setting (the W&B group, whose hash distinguishes
settings of one activation). Needs `pip install -r requirements-dashboard.txt`; --json needs neither
account nor network. docs/dashboards.md.
"""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sweep_plan

import runlog
from plots.dashboards import IMAGES, VIDEOS
from runlog import disk, mirrors


@dataclasses.dataclass
class Args:
    entity: str = ""  # W&B account or team that owns the project
    project: str = "activations-rl"  # W&B project, --wandb-project of the runs
    script: str = "sac_continuous.py"  # script whose panels the workspace shows
    name: str = "Activations"  # name of the workspace
    json: Path | None = None  # write the workspace to this file instead of saving it in W&B


def sections_of(script: str) -> dict:
    """The panels that a script defines, at its default flags. Raises UserError: no such script, or
    it defines none."""
    module = sweep_plan.load_script(script)
    if not hasattr(module, "dashboard"):
        problem = f"--script {script}: has no function dashboard(args), which gives its panels"
        raise runlog.UserError(f"{problem} (docs/dashboards.md)")
    return module.dashboard(module.Args())


def make_workspace(args: Args):
    """The `wandb_workspaces.workspaces.Workspace`; nothing is sent.
    Raises UserError without the package."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        problem = f"wandb-workspaces cannot be imported ({error})"
        raise runlog.UserError(f"{problem}; pip install -r requirements-dashboard.txt") from None
    sections = []
    for section, charts in sections_of(args.script).items():
        media = IMAGES.get(section, {}) | VIDEOS.get(section, {})
        panels = [wr.MediaBrowser(title=title, media_keys=[key]) for title, key in media.items()]
        for title, patterns in charts.items():
            keys = mirrors.as_one_pattern(patterns)
            several = re.search(r"\W", keys.replace("/", ""))  # one key is given as it is
            selection = {"metric_regex": f"^({keys})$"} if several else {"y": [keys]}
            # over the seeds of a group
            spread = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
            panels.append(
                wr.LinePlot(
                    title=title,
                    x="global_step",
                    title_x="environment steps or updates",
                    **selection,
                    **spread,
                )
            )
        # no second page
        grid = ws.SectionLayoutSettings(columns=3, rows=math.ceil(len(panels) / 3))
        sections.append(ws.Section(name=section, panels=panels, is_open=True, layout_settings=grid))
    groups = [expr.Config("env_id"), expr.Config("activation"), expr.Metric("Group")]
    with runlog.errors_are_user_errors(f"--name {args.name}", "use letters and digits"):
        return ws.Workspace(
            entity=args.entity,
            project=args.project,
            name=args.name,
            sections=sections,
            settings=ws.WorkspaceSettings(x_axis="global_step", max_runs=100),
            runset_settings=ws.RunsetSettings(groupby=groups),
        )


def main(args: Args) -> None:
    if not args.project:
        raise runlog.UserError(
            "--project: is empty; give the --wandb-project of the runs, by default activations-rl"
        )
    if not (args.entity or args.json):
        raise runlog.UserError(
            "--entity: is missing; give the W&B account or team, or write a file with --json FILE"
        )
    workspace = make_workspace(args)
    if args.json:
        view = workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True)
        with disk.writing(args.json):
            args.json.write_text(json.dumps(view, indent=2) + "\n")
        print(f"wrote {args.json}: {len(workspace.sections)} sections")
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        problem = "W&B is not logged in (or WANDB_MODE is offline)"
        raise runlog.UserError(
            f"{problem}; log in with `wandb login`, or write a file with --json FILE"
        )
    with runlog.errors_are_user_errors(
        f"--entity {args.entity} --project {args.project}: W&B did not save the workspace",
        "check both names, that the project has a run, and the network, or write a file with "
        "--json FILE",
    ):
        workspace.save()
    print(workspace.url)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
