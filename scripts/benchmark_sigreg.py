"""SIGReg beside the public implementations that are installed: values, gradients, two processes, time and memory.

pip install --no-deps lightly stable-pretraining stable-worldmodel einops     (in an environment of their own)
python scripts/benchmark_sigreg.py

Equality is measured on the same directions, against a float64 table of all cosines; time and memory with each one's
own call, forward and backward, 1024 directions and 17 nodes, one thread. A peer is loaded from its installed file, with
the rest of its package and the large libraries around it replaced by empty modules; lightly's world size, the one thing
of these that a SIGReg here uses, by torch's.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from worldmodel.regularizers import SIGReg
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

OURS = "this project"
# Distribution, file of its SIGReg, class, modules that file imports and its SIGReg does not use.
PEERS = {
    "lightly": ("lightly/loss/lejepa_loss.py", "SIGReg", ["lightly.utils", "lightly.utils.dist"]),
    "stable-pretraining": (
        "stable_pretraining/methods/lejepa.py",
        "SlicedEppsPulley",
        ["transformers.utils", "timm", "stable_pretraining", "stable_pretraining.backbone"],
    ),
    "stable-worldmodel": ("stable_worldmodel/wm/loss.py", "SIGReg", []),
}
CASES = [(512, 64), (2048, 192), (8192, 256), (100_000, 256)]
TABLE_LIMIT = (
    10_000  # samples; beyond, a peer's table of cosines needs more memory than this benchmark grants
)
MEMORY_LIMIT_GIB = 8


class _Anything(types.ModuleType):
    """An empty module whose every attribute is a class."""

    def __getattr__(self, name: str) -> Any:
        return type(name, (), {})


def load_peer(name: str) -> type[nn.Module] | None:
    """The peer's SIGReg class, or None where it is not installed."""
    file, attribute, unused = PEERS[name]
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    stand_ins = {module: _Anything(module) for module in unused}
    stand_ins |= {module.partition(".")[0]: _Anything(module) for module in unused}
    if name == "lightly":  # its rank and world size
        stand_ins["lightly.utils.dist"].world_size = _world_size  # type: ignore[attr-defined]
        stand_ins["lightly.utils"].dist = stand_ins["lightly.utils.dist"]  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(f"{package}_peer", Path(found.origin).parent / rest)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stand_ins):
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return getattr(module, attribute)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def build(name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """z [N, D] to the statistic, each with directions of its own."""
    if name == OURS:
        sigreg = SIGReg()
        return lambda z: sigreg(z, step=0)
    peer = load_peer(name)
    if peer is None:
        return None
    options = {"gather_distributed": True} if name == "lightly" and dist.is_initialized() else {}
    return peer(**options).to(torch.get_default_dtype())


def on_directions(name: str, a: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The same on given unit columns a [D, 1024]."""
    call = build(name)
    if name == OURS:
        sigreg = SIGReg()
        sigreg.directions = lambda dim, **_: a  # type: ignore[method-assign, assignment]
        return lambda z: sigreg(z, step=0)
    if call is None:
        return None

    def with_directions(z: torch.Tensor) -> torch.Tensor:
        with mock.patch("torch.randn", side_effect=lambda *_, **__: a.clone()):
            return call(z)

    return with_directions


def table_of_cosines(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """The definition, directions in parts: the reference."""
    t = torch.linspace(0, 3, 17, dtype=z.dtype)
    weights = torch.full((17,), 0.375, dtype=z.dtype)
    weights[[0, -1]] = 0.1875
    phi = torch.exp(-t.square() / 2)
    total = z.new_zeros(())
    for part in a.split(128, dim=1):
        angle = (z @ part).unsqueeze(-1) * t
        square = (angle.cos().mean(0) - phi).square() + angle.sin().mean(0).square()
        total = total + (square @ (weights * phi)).sum()
    return total * len(z) / a.shape[1]


def value_and_gradient(
    call: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor
) -> tuple[float, torch.Tensor]:
    own = z.clone().requires_grad_()
    value = call(own)
    value.backward()
    assert own.grad is not None
    return float(value.detach()), own.grad


def samples(n: int, d: int) -> torch.Tensor:
    """Gaussian, a little too wide and off centre."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)) * 1.1 + 0.05


def equality(name: str, n: int, d: int) -> dict[str, float]:
    """Relative errors of value and gradient against the float64 table, same directions."""
    a = torch.nn.functional.normalize(torch.randn(d, 1024, generator=torch.Generator().manual_seed(1)), dim=0)
    call = on_directions(name, a)
    assert call is not None
    z = samples(n, d)
    exact, reference = value_and_gradient(lambda x: table_of_cosines(x, a.double()), z.double())
    value, gradient = value_and_gradient(call, z)
    return {
        "value_error": abs(value - exact) / exact,
        "gradient_error": float((gradient - reference).norm() / reference.norm()),
    }


def timed(names: list[str], n: int, d: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of forward and backward, the implementations taking turns."""
    calls = {name: build(name) for name in names}
    z = samples(n, d)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            assert call is not None
            began = time.perf_counter()
            value_and_gradient(call, z)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def peak_memory(name: str, n: int, d: int) -> float | None:
    """MiB on top of the input, in a process of its own; None if it needs more than the limit."""
    words = [sys.executable, __file__, "--peak", name, str(n), str(d)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        if "can't allocate memory" in done.stderr or "MemoryError" in done.stderr:
            return None
        raise RuntimeError(f"{name} at {n} x {d} failed:\n{done.stderr[-1500:]}")
    return float(json.loads(done.stdout))


def _print_peak(name: str, n: int, d: int) -> None:
    limit = MEMORY_LIMIT_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    call = build(name)
    assert call is not None
    value_and_gradient(call, samples(16, d))  # what torch itself needs
    z = samples(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here, not at the imports
    before = _status("VmRSS")
    value_and_gradient(call, z)
    print((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def two_processes(name: str) -> dict[str, float]:
    """Loss and DDP-averaged gradient of two gloo processes against one, float64, 16 samples."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--rank"]
        ranks = [
            subprocess.Popen(
                [*words, str(r), folder, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for r in range(2)
        ]
        outputs = [process.communicate(timeout=120) for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"{name} on two processes failed:\n{outputs[0][1][-1500:]}")
    return json.loads(outputs[0][0])


def _print_rank(rank: int, folder: str, name: str) -> None:
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    z, a = torch.randn(16, 4, generator=generator), torch.randn(4, 1024, generator=generator)
    a /= a.norm(dim=0)
    whole, reference = value_and_gradient(lambda x: table_of_cosines(x, a), z)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    call = on_directions(name, a)
    assert call is not None
    value, gradient = value_and_gradient(call, z.chunk(2)[rank])
    # The gradient with respect to a rank's own samples, averaged over ranks as DDP does: 0 for the others' samples.
    joined = torch.zeros_like(z)
    joined[rank * 8 : rank * 8 + 8] = gradient
    dist.all_reduce(joined)
    joined /= 2
    if rank == 0:
        row = {
            "loss_error": abs(value - whole) / whole,
            "gradient_cosine": float((joined * reference).sum() / (joined.norm() * reference.norm())),
            "gradient_norm_ratio": float(joined.norm() / reference.norm()),
            "gradient_error": float((joined - reference).norm() / reference.norm()),
        }
        print(json.dumps(row))
    dist.barrier()


def tables(result: dict[str, Any]) -> str:
    """Markdown."""
    head = ["implementation", "N x D", "value error", "gradient error", "ms", "time / ours", "peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in result["cases"]:
        size = f"{row['n']} x {row['d']}"
        errors = [f"{row[k]:.1e}" if k in row else "" for k in ("value_error", "gradient_error")]
        times = ["", ""]
        if "median_s" in row:
            spread = f"({1e3 * row['min_s']:.1f} .. {1e3 * row['max_s']:.1f})"
            times = [f"{1e3 * row['median_s']:.1f} {spread}", f"{row['time_over_ours']:.1f}"]
        peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] is not None else f"over {MEMORY_LIMIT_GIB} GiB"
        lines.append("| " + " | ".join([row["name"], size, *errors, *times, peak]) + " |")
    lines += [
        "",
        "Two processes, 8 samples each, against one with 16; float64, gradients averaged as DDP does:",
        "",
    ]
    lines += [
        "| implementation | loss error | gradient cosine | gradient norm ratio | gradient error |",
        "|---" * 5 + "|",
    ]
    for row in result["two_processes"]:
        cosine, ratio = f"{row['gradient_cosine']:.4f}", f"{row['gradient_norm_ratio']:.4f}"
        lines.append(
            f"| {row['name']} | {row['loss_error']:.1e} | {cosine} | {ratio} | {row['gradient_error']:.1e} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    return "\n".join([*lines, "", f"Peers: {versions or 'none installed'}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each implementation and size")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        return _print_peak(arguments.peak[0], int(arguments.peak[1]), int(arguments.peak[2]))
    if arguments.rank:
        return _print_rank(int(arguments.rank[0]), arguments.rank[1], arguments.rank[2])
    names = [OURS, *(name for name in PEERS if load_peer(name) is not None)]
    missing = [name for name in PEERS if name not in names]
    if missing:
        print(f"not installed: {', '.join(missing)}", flush=True)
    rows = []
    for n, d in CASES:
        in_time = names if n <= TABLE_LIMIT else [OURS]
        seconds = timed(in_time, n, d, arguments.repeats if n <= TABLE_LIMIT else 3)
        for name in names:
            row: dict[str, Any] = {"name": name, "n": n, "d": d, "peak_mib": peak_memory(name, n, d)}
            if n <= 2048:
                row |= equality(name, n, d)
            if name in in_time:
                median = statistics.median(seconds[name])
                row |= {"median_s": median, "min_s": min(seconds[name]), "max_s": max(seconds[name])}
                row["time_over_ours"] = median / statistics.median(seconds[OURS])
            rows.append(row)
            print(row, flush=True)
    result = {
        "cases": rows,
        "two_processes": [{"name": name, **two_processes(name)} for name in names],
        "peers": {name: importlib.metadata.version(name) for name in names if name != OURS},
        **provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "sigreg_peers.json"
    write_json(path, result)
    path.with_suffix(".md").write_text(tables(result))
    print(path.with_suffix(".md").read_text())
    return None


if __name__ == "__main__":
    main()
