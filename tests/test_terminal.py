"""Output that cannot be written, terminals without Unicode, machines that cannot compile:
`pytest -q tests/test_terminal.py`."""

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config

import runlog
from runlog import compiler, terminal, video

TALK = (
    "import sys, runlog\nwith runlog.exit_on_user_error({}):\n"
    "    for i in range(3000): print('line', i, flush={})\n"
)


def run_program(matters="", flush=True, **pipes):
    """A program of 3,000 lines; 25 kB are more than Python's buffer and less than a pipe's."""
    command = [sys.executable, "-c", TALK.format(matters, flush)]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(command, env=env, text=True, timeout=60, **pipes)


def closed_pipe():
    """The write end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_that_leaves_does_not_end_the_program(flush):
    write = closed_pipe()
    done = run_program(flush=flush, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0 and done.stderr.splitlines() in (
        ["warning: cannot write to stdout (Broken pipe); continuing without it"],
        [],  # nothing was written before the end
    )
    assert flush is False or done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_ends_a_training_and_not_a_table(tmp_path):
    with open("/dev/full", "w") as full:
        training = run_program(stdout=full, stderr=subprocess.PIPE)
        table = run_program("stdout_matters=True", stdout=full, stderr=subprocess.PIPE)
        both = run_program(stdout=full, stderr=full)
    assert training.returncode == 0
    assert "warning: cannot write to stdout (No space left" in training.stderr
    assert training.stderr.count("\n") == 1
    assert table.returncode == 2
    assert table.stderr.startswith("error: cannot write to stdout: No space left")
    assert table.stderr.count("\n") == 1 and both.returncode == 0


def test_streams_that_are_closed_from_the_start(tmp_path):
    body = (
        "print('x'); print('y', file=sys.stderr); progress = runlog.Progress(0, 3); "
        "progress.update(1)"
    )
    body += (
        f"; open({str(tmp_path / 'file')!r}, "
        f"'w').write(str(open({str(tmp_path / 'file')!r}).fileno()))"
    )
    (tmp_path / "file").write_text("")
    code = f"import sys, runlog\nwith runlog.exit_on_user_error():\n    {body}"
    command = f'"{sys.executable}" -c "$CODE" >&- 2>&-'
    env = {**os.environ, "CODE": code, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(["sh", "-c", command], env=env, timeout=60)
    # no other file becomes stdout
    assert done.returncode == 0 and int((tmp_path / "file").read_text()) > 2


def test_an_error_keeps_its_exit_code_without_stderr():
    write = closed_pipe()
    code = "import runlog\nwith runlog.exit_on_user_error(): raise runlog.UserError('x')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=write
    )
    os.close(write)
    assert done.returncode == 2


def test_streams_are_restored(capsys):
    before = sys.stdout, sys.stderr, sys.stdout.errors
    with runlog.exit_on_user_error():
        print("text")
        assert sys.stdout is not before[0] and sys.stdout.encoding == before[0].encoding
    assert (
        sys.stdout,
        sys.stderr,
        sys.stdout.errors,
    ) == before
    assert capsys.readouterr().out == "text\n"


def test_characters_that_the_terminal_lacks_are_escaped():
    code = "import runlog\nwith runlog.exit_on_user_error(): print('r\xfcns')"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "r\\xfcns\n"), done


def test_a_wrong_flag_is_reported_the_same_without_unicode(capsys, monkeypatch):
    import sac_continuous

    messages = []
    for encoding in ("utf-8", "ascii"):
        with open(os.devnull, "w", encoding=encoding) as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit):
                runlog.parse_args(sac_continuous.Args, ["--sed", "3"])
        messages.append(capsys.readouterr().err)
    assert messages[0] == messages[1]
    assert messages[0].startswith(
        "error: Unrecognized options: --sed, 3; Perhaps you meant: --seed"
    )


def test_the_bar_is_ascii(monkeypatch):
    class Terminal:
        encoding = "utf-8"
        written = ""

        def isatty(self):
            return True

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = runlog.Progress(0, 10, "toy")
    progress._bar.mininterval = 0
    progress.update(5)
    progress.close()
    assert "50%" in stream.written and stream.written.isascii()


def test_warnings_of_a_subject_come_once(capsys):
    for text in ("first", "second"):
        terminal.warn_once("plots", text)
    terminal.warn_once("video", "third")
    assert capsys.readouterr().err == "warning: first\nwarning: third\n"


def test_a_video_that_cannot_be_written_is_a_warning(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio.v2", None)  # its import fails
    assert video.write_video(tmp_path / "videos" / "step-1.mp4", [], fps=15) is False
    assert video.write_video(tmp_path / "videos" / "step-2.mp4", [], fps=15) is False
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no video {tmp_path / 'videos' / 'step-1.mp4'}")
    assert "imageio" in line


# ---- the compiler --------------------------------------------------------------------------------


def test_without_a_compiler_one_line_names_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with (
        inductor_config.patch({"cpp.cxx": (None, "/nonexistent/g++")}),
        pytest.raises(runlog.UserError) as caught,
    ):
        compiler.check_compiler(torch.device("cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert "/nonexistent/g++" in message
    assert "--no-compile" in message
    assert "apt install g++" in message
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # then nothing is compiled
    compiler.check_compiler(torch.device("cpu"))


def test_a_compiler_that_fails_is_reported_with_its_reason(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'fatal error: no Python.h' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    message = r"cannot compile a file with Python\.h \(fatal error: no Python\.h\)"
    with (
        inductor_config.patch({"cpp.cxx": (None, str(broken))}),
        pytest.raises(runlog.UserError, match=message),
    ):
        compiler.check_compiler(torch.device("cpu"))


def test_triton_needs_a_c_compiler(monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent/gcc")
    with pytest.raises(runlog.UserError, match=r"no working C compiler \(/nonexistent/gcc\)"):
        compiler.check_compiler(torch.device("cuda"))


@pytest.fixture
def no_probe_yet(monkeypatch):
    """As in a process that has not compiled: torch keeps no answer, and neither afterwards."""
    from torch._inductor import cpu_vec_isa

    classes = [cpu_vec_isa.VecISA] + [type(isa) for isa in cpu_vec_isa.supported_vec_isa_list]
    cached = [cpu_vec_isa.valid_vec_isa_list]
    for cls in classes:
        cached += [f for f in vars(cls).values() if hasattr(f, "cache_clear")]
    monkeypatch.setattr(compiler, "_probes", [])
    for function in cached:
        function.cache_clear()
    yield cpu_vec_isa
    compiler.wait_for_probe()
    for function in cached:
        function.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere torch tries nothing")
def test_vector_instructions_are_probed_early_and_once(no_probe_yet, monkeypatch):
    """What torch.compile asks of the machine, new processes, is asked by a thread of its own, and a
    compilation finds the answers."""
    callers = []

    def probe_load(isa, path):
        callers.append(threading.current_thread().name)
        return True

    monkeypatch.setattr(no_probe_yet.VecISA, "_probe_load", probe_load)
    compiler.probe_early(torch.device("cpu"))
    compiler.probe_early(torch.device("cpu"))  # of another batch: nothing more
    compiler.say_compiling()  # as a compilation begins
    assert callers and set(callers) == {"vector instructions"}
    number = len(callers)
    no_probe_yet.pick_vec_isa()
    assert len(callers) == number


def test_nothing_is_probed_where_nothing_is_compiled_for_the_cpu(no_probe_yet, monkeypatch):
    monkeypatch.setattr(no_probe_yet, "pick_vec_isa", lambda: pytest.fail("tried"))
    compiler.probe_early(torch.device("cuda"))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    compiler.probe_early(torch.device("cpu"))
    assert compiler._probes == []


def test_a_failed_probe_is_left_to_the_compilation(no_probe_yet, monkeypatch):
    def fail():
        raise OSError("no more processes")

    uncaught = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    monkeypatch.setattr(no_probe_yet, "pick_vec_isa", fail)
    compiler.probe_early(torch.device("cpu"))
    compiler.say_compiling()
    assert compiler._probes and uncaught == []


def test_a_cache_that_cannot_be_written_is_replaced(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/nope")
    compiler._find_cache()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.parent == tmp_path and folder.is_dir()
    assert capsys.readouterr().err.startswith(
        "warning: torch.compile cannot keep compiled code (FileNotFoundError"
    )
    compiler._find_cache()  # that one is good
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and capsys.readouterr().err == ""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/nope")
    monkeypatch.setattr(compiler.tempfile, "tempdir", "/proc/nope")
    with pytest.raises(runlog.UserError, match="set TORCHINDUCTOR_CACHE_DIR"):
        compiler._find_cache()


def test_the_default_cache_is_torchs(monkeypatch):
    from torch._inductor.runtime import cache_dir_utils

    assert compiler._default_cache() == cache_dir_utils.default_cache_dir()
