"""Images and videos to bytes and back: the one place of this package that encodes and decodes pixels.

Frames are [T, H, W, C] uint8 with 1 or 3 channels here; `to_pixels` and `from_pixels` move the axes of a feature.
"""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from envs.lerobot.schema import DatasetFormatError, Feature

# Options per encoder: quality close to visually lossless, and every second frame a key frame, so that a random window
# decodes at most one frame too many. No B-frames: episodes are joined without encoding them again.
ENCODERS: dict[str, dict[str, str]] = {
    "h264": {"crf": "18", "g": "2", "bf": "0", "preset": "veryfast", "threads": "1"},
    "libsvtav1": {"crf": "30", "g": "2", "preset": "12", "svtav1-params": "lp=1"},
}


def to_pixels(frames: np.ndarray, feature: Feature) -> np.ndarray:
    """[T, *feature.shape] to [T, H, W, C]."""
    return np.moveaxis(frames, 1, -1) if feature.channels_first else frames


def from_pixels(pixels: np.ndarray, feature: Feature) -> np.ndarray:
    """[T, H, W, C] to [T, *feature.shape]."""
    return np.moveaxis(pixels, -1, 1) if feature.channels_first else pixels


def encode_png(image: np.ndarray) -> bytes:
    """An image [H, W, C] uint8 as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png", compress_level=6)
    return buffer.getvalue()


def decode_image(content: bytes, *, channels: int) -> np.ndarray:
    """An image file of any format pillow reads, as [H, W, C] uint8.

    Raises:
        DatasetFormatError: if the bytes are no image, or are cut.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = "L" if channels == 1 else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetFormatError(
            f"an embedded image of {len(content)} bytes cannot be read: {error}"
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def encode_video(path: Path, frames: np.ndarray, *, fps: float, codec: str) -> None:
    """Frames [T, H, W, C] as an MP4 in yuv420p.

    Raises:
        ValueError: on an unknown codec or an odd height or width.
    """
    if codec not in ENCODERS:
        raise ValueError(f"unknown codec {codec!r}; use one of {', '.join(ENCODERS)}")
    _, height, width, channels = frames.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"video frames need an even height and width, got {height} x {width}; store them as images"
        )
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=dict(ENCODERS[codec]))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = 1 / rate
        for index, image in enumerate(frames):
            rgb = np.repeat(image, 3, axis=-1) if channels == 1 else image
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def join_videos(parts: Sequence[Path], target: Path, *, lengths: Sequence[int], fps: float) -> None:
    """Videos one after another in one file: frame i of part p is shown from (sum(lengths[:p]) + i) / fps s on.

    Packets are copied, not encoded again.
    """
    rate = Fraction(fps).limit_denominator(1000)
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(target), "w", format="mp4") as joined:
        stream: Any = None
        for part, start in zip(parts, np.cumsum([0, *lengths]), strict=False):
            with av.open(str(part)) as container:
                source: Any = container.streams.video[0]
                stream = stream or joined.add_stream_from_template(source, opaque=True)
                offset = round(int(start) / rate / source.time_base)
                for packet in container.demux(source):
                    if packet.pts is None or packet.dts is None:  # The empty packet at the end.
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    joined.mux(packet)


def video_info(path: Path) -> dict[str, Any]:
    """What meta/info.json says of a video feature."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.fps": round(float(stream.average_rate or 0)),
            "video.channels": 3,
            "is_depth_map": False,
            "has_audio": False,
        }


def decode_video(path: Path, *, start: float, count: int, fps: float, channels: int) -> np.ndarray:
    """`count` frames from `start` seconds on, [count, H, W, C] uint8; each within half a frame of its time.

    Raises:
        DatasetFormatError: if the file is missing, truncated, or ends before the last frame.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or 0)
            container.seek(max(0, int((start - 0.5 / fps) / base)), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts * base < start + (len(frames) - 0.5) / fps:
                    continue
                if frame.pts * base > start + (len(frames) + 0.5) / fps:
                    break
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == count:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise DatasetFormatError(f"{path} is missing, truncated or no video: {error}") from error
    if len(frames) < count:
        raise DatasetFormatError(
            f"{path} has no frame within {0.5 / fps:.3g} s of {start + len(frames) / fps:.3f} s: truncated, or not at "
            f"{fps} frames per second"
        )
    return np.stack(frames)[..., :channels]
