"""Videos, which are optional: without graphics or ffmpeg there is a warning, and the training
continues."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runlog.terminal import reason, warn_once


def save_video(path: Path, make_env: Callable, policy: Callable, every: int = 4) -> float:
    """Films one episode, one frame every `every` steps, at 25 frames per second; returns the return
    of the episode.

    make_env creates an environment with render_mode "rgb_array"; policy: observation (obs_dim,) ->
    action (action_dim,). Training does not depend on it: without graphics or ffmpeg the reason is
    printed in one line on stderr, and the return is nan.
    """
    total = 0.0
    steps = 0
    done = False
    frames = []
    try:
        env = make_env()
        obs, _ = env.reset()
        while not done:
            if steps % every == 0:
                frames.append(env.render())
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total += float(reward)
            steps += 1
            done = terminated or truncated
        env.close()
    except Exception as error:
        warn_once("video", f"no video {path} ({reason(error)})")
        return float("nan")
    write_video(path, frames, fps=25)
    return total


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> bool:
    """Writes an mp4 of RGB frames (height, width, 3) uint8. Returns whether it was written; if not,
    the first reason in this process is printed in one line on stderr."""
    try:
        import imageio.v2 as imageio

        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.mimsave(path, frames, fps=fps, macro_block_size=1)
    except Exception as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # a partial file
        warn_once("video", f"no video {path} ({reason(error)})")
        return False
    return True


def as_gif(path: Path, max_frames: int = 50, width: int = 160) -> bytes:
    """A video as an animated GIF with at most `max_frames` evenly spaced frames and the duration
    of the video; at most `width` pixels wide."""
    import imageio.v3 as imageio
    from PIL import Image

    facts = imageio.immeta(path)
    number = max(1, round(facts["fps"] * facts["duration"]))
    kept = set(np.linspace(0, number - 1, max_frames).round().astype(int).tolist())
    pictures = []
    for i, frame in enumerate(imageio.imiter(path)):  # a game may not fit into memory
        if i not in kept:
            continue
        picture = Image.fromarray(frame)
        if picture.width > width:
            picture = picture.resize((width, round(picture.height * width / picture.width)))
        pictures.append(picture.quantize(64, dither=Image.Dither.NONE))
    content = io.BytesIO()
    milliseconds = 1000 * facts["duration"] / len(pictures)
    pictures[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(milliseconds)),  # browsers do not play faster
        loop=0,
    )
    return content.getvalue()
