"""The training scripts of this project, found as the sweep finds them:
a new script is tested automatically."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import sweep_plan

SCRIPTS = {name: importlib.import_module(name) for name in sweep_plan.own_scripts()}
