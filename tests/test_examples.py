"""The notebook of examples/: its code runs as it stands, on two short trainings made on the spot.

`pytest -q tests/test_examples.py` (about 30 s).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "analyse_a_run.ipynb"
SHORT = {  # text in the notebook -> what the test runs in its place
    "STEPS = 6_000": "STEPS = 700",
    'RUNS = Path("../runs/notebook")': "RUNS = Path(sys.argv[1])",
    "widths=(64, 64)": "widths=(16, 16)",
}


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    code = "\n\n".join(code_cells())
    for original, shortened in SHORT.items():
        assert code.count(original) == 1, original
        code = code.replace(original, shortened)
    code += '\nfor number in plt.get_fignums():\n    plt.figure(number).savefig(f"{number}.png")\n'
    script = tmp_path / "notebook.py"
    script.write_text(
        code.replace('sys.path.insert(0, "..")', f"sys.path.insert(0, {str(ROOT)!r})")
    )
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs")],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "crational: finished, checkpoint at step 700" in done.stdout
    table = [line.split() for line in done.stdout.splitlines() if " hidden." in line]
    assert [row[:3] for row in table] == [
        ["relu", "hidden.0", "16"],
        ["relu", "hidden.1", "16"],
        ["crational", "hidden.0", "16"],
        ["crational", "hidden.1", "16"],
    ]
    assert all(0 <= int(row[3]) <= 16 and 1 <= int(row[4]) <= 16 for row in table)
    assert len([*tmp_path.glob("*.png")]) == 2
    assert len([*(tmp_path / "runs").iterdir()]) == 2


def test_the_notebook_is_committed_as_it_was_run_and_is_small():
    """With its pictures, in order, without an error, and without paths of somebody's machine."""
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = []
    for cell in code:
        outputs += cell["outputs"]
    assert NOTEBOOK.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    printed = json.dumps(outputs)
    assert not re.search(r"[\s\"'=(]/\w+/", printed)  # no path of the machine that ran it
