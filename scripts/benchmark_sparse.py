"""Time the sparse encoder and the voxeliser against spconv; write docs/results/sparse_cpu.json and a table from it.

python scripts/benchmark_sparse.py [--real KITTI_OBJECT_ROOT] [--device cuda]

Ours and spconv take turns in one process on the same voxels, so that a busy machine slows both; ratios are medians
over the turns. On a CPU spconv runs its Native algorithm with one call patched, as it must (see lidar.sparse); with
more than one thread its results are wrong, and its time is given only for the record.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs.driving.kitti_export import DatasetSpec, build_dataset
from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.datasets import KittiObject, LidarFrames, collate
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.sparse import PairTable, Sites, SparseTensor
from lidar.sparse.modules import SparseConv3d, SubMConv3d
from lidar.voxels import voxelize
from worldmodel.training.checkpoints import write_json
from worldmodel.training.provenance import provenance

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A grid, an encoder and a batch size to time."""

    grid: VoxelGrid
    widths: tuple[int, ...]
    batch_size: int
    max_points: int | None
    max_voxels: int | None


WORKLOADS = {
    "kitti": Workload(
        grid=VoxelGrid(point_range=(0, -40, -3, 70.4, 40, 1), voxel_size=(0.05, 0.05, 0.1)),
        widths=(16, 32, 64, 64, 128),
        batch_size=1,
        max_points=5,
        max_voxels=16_000,
    ),
    "small": Workload(
        grid=VoxelGrid(point_range=(0, -12.8, -3, 25.6, 12.8, 1), voxel_size=(0.2, 0.2, 0.2)),
        widths=(8, 16, 32, 32),
        batch_size=4,
        max_points=None,
        max_voxels=None,
    ),
}


class Peer(nn.Module):
    """The same network in plain spconv modules, as OpenPCDet builds it; its state dict is ours."""

    def __init__(self, library: Any, workload: Workload, *, native: bool) -> None:
        super().__init__()
        self.library, self.shape = library, list(workload.grid.sparse_shape)
        options: dict[str, Any] = {"bias": False}
        if native:
            options["algo"] = library.ConvAlgo.Native

        def block(before: int, width: int, key: str, *geometry: Any) -> nn.Module:
            kind = library.SparseConv3d if geometry else library.SubMConv3d
            conv = kind(before, width, *(geometry or (3,)), indice_key=key, **options)
            return library.SparseSequential(conv, nn.BatchNorm1d(width, eps=1e-3, momentum=0.01), nn.ReLU())

        stem, *stages, out = workload.widths
        self.conv_input = block(4, stem, "subm1")
        self.conv1 = library.SparseSequential(block(stem, stem, "subm1"))
        self.names = ["conv_input", "conv1"]
        for n, (before, width) in enumerate(zip([stem, *stages], stages, strict=False), start=2):
            padding = (0, 1, 1) if n == len(stages) + 1 else 1
            layers = [block(before, width, f"spconv{n}", 3, 2, padding)]
            layers += [block(width, width, f"subm{n}") for _ in range(2)]
            self.add_module(f"conv{n}", library.SparseSequential(*layers))
            self.names.append(f"conv{n}")
        self.conv_out = block(stages[-1], out, "spconv_down2", (3, 1, 1), (2, 1, 1), 0)
        self.names.append("conv_out")

    def forward(self, voxels: VoxelBatch) -> torch.Tensor:
        tensor = self.library.SparseConvTensor(
            voxels.features, voxels.coordinates.int(), self.shape, voxels.batch_size
        )
        for name in self.names:
            tensor = self.get_submodule(name)(tensor)
        return tensor.features


class Ours(nn.Module):
    """Our encoder up to its sparse output, under autocast or not."""

    def __init__(self, encoder: SparseEncoder, *, bfloat16: bool) -> None:
        super().__init__()
        self.encoder, self.bfloat16 = encoder, bfloat16

    def forward(self, voxels: VoxelBatch) -> torch.Tensor:
        with torch.autocast(voxels.features.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.encoder.encode(voxels).features.float()


def networks(workload: Workload, device: str) -> dict[str, nn.Module]:
    """Ours and every peer that is installed, with equal weights."""
    torch.manual_seed(SEED)
    encoder = SparseEncoder(in_channels=4, grid=workload.grid, widths=workload.widths, backend="torch")
    nets: dict[str, nn.Module] = {
        "ours fp32": Ours(encoder, bfloat16=False),
        "ours bf16": Ours(encoder, bfloat16=True),
    }
    for package in ("spconv", "spconv_triton"):
        if find_spec(package) and not (package == "spconv_triton" and device == "cpu"):
            library = import_module(f"{package}.pytorch")
            if device == "cpu" and not torch.cuda.is_available():
                import_module("spconv.pytorch.ops").get_current_stream = lambda: 0  # type: ignore[attr-defined]
            nets[package] = Peer(library, workload, native=device == "cpu")
            nets[package].load_state_dict(encoder.state_dict())
    return {name: net.to(device) for name, net in nets.items()}


def forward(net: nn.Module, voxels: VoxelBatch) -> None:
    """A forward pass in training mode, without a gradient."""
    with torch.no_grad():
        net(voxels)


def step(net: nn.Module, voxels: VoxelBatch) -> None:
    """Forward and backward."""
    net.zero_grad(set_to_none=True)
    net(voxels).square().mean().backward()


def build_tables(encoder: SparseEncoder, voxels: VoxelBatch) -> list[tuple[nn.Module, PairTable]]:
    """Every table of the encoder with its runs, as a training step needs them; each layer with its table."""
    sites = Sites.from_coordinates(
        voxels.coordinates, shape=encoder.input_shape, batch_size=voxels.batch_size
    )
    tables: dict[str, PairTable] = {}
    layers = []
    for conv in encoder.modules():
        if isinstance(conv, SubMConv3d | SparseConv3d):
            if conv.index_key not in tables:
                tensor = SparseTensor(features=voxels.features.new_empty(len(sites), 0), sites=sites)
                table = tables[conv.index_key] = conv.build_table(tensor)
                table.forward, table.backward  # noqa: B018  (cached properties: this builds them)
            sites = tables[conv.index_key].target
            layers.append((conv, tables[conv.index_key]))
    return layers


def useful_flops(encoder: SparseEncoder, voxels: VoxelBatch) -> dict[str, float]:
    """Two per pair and pair of channels; the backward costs twice that, less the first layer's input gradient."""
    flops = []
    for conv, table in build_tables(encoder, voxels):
        pairs = sum(len(t) * n for b in table.forward for t, n in zip(b.taps, b.sizes, strict=True))
        flops.append(2.0 * pairs * conv.weight.shape[0] * conv.weight.shape[-1])
    return {"forward": sum(flops), "step": 3 * sum(flops) - flops[0]}


def sgemm_gflops(device: str) -> float:
    """Speed of one large float32 product: the limit that the sparse products are held against."""
    a = torch.randn(1024, 1024, device=device)
    seconds = [clock(lambda: a @ a, device) for _ in range(3)]
    return 2 * 1024**3 / min(seconds) / 1e9


def clock(work: Callable[[], Any], device: str) -> float:
    """Seconds: CPU time on one thread of a CPU, else wall time."""
    if device == "cuda":
        torch.cuda.synchronize()
    timer = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = timer()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return timer() - began


def in_turns(works: dict[str, Callable[[int], Any]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each work in each round, all works taking turns; one round before does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, rounds):
        for name, work in works.items():
            spent = clock(partial(work, max(turn, 0)), device)
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


def summary(seconds: dict[str, list[float]], peer: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of each work and how many times faster than the peer it is, with quartiles."""
    result = {}
    for name, own in seconds.items():
        row = {"median_ms": 1e3 * statistics.median(own), "min_ms": 1e3 * min(own)}
        if peer in seconds and name != peer:
            ratios = [p / o for p, o in zip(seconds[peer], own, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row |= {"times_faster": middle, "times_faster_q25": low, "times_faster_q75": high}
        result[name] = row
    return result


def clouds(workload: Workload, *, real: Path | None, scratch: Path, count: int) -> list[PointCloudBatch]:
    """Batches of shuffled camera-view frames, real or simulated."""
    if real:
        source = KittiObject(root=real, view="camera")
    else:
        spec = DatasetSpec(train=4 * count, probe=0, val=0)
        source = KittiObject(root=build_dataset(scratch, spec=spec, workers=1, progress=False))
    frames = LidarFrames(source=source, refs=source.frames, point_range=workload.grid.point_range)
    size = workload.batch_size
    return [
        collate([frames[((b * size + i) % len(frames), SEED)] for i in range(size)]) for b in range(count)
    ]


def voxeliser_works(workload: Workload, batches: list[PointCloudBatch]) -> dict[str, Callable[[int], Any]]:
    """Ours, and spconv's hash voxeliser followed by the mean."""
    # spconv's needs caps: it allocates for them.
    caps = {"max_points_per_voxel": workload.max_points or 5, "max_voxels": workload.max_voxels or 40_000}

    def ours(turn: int) -> None:
        voxelize(batches[turn % len(batches)], workload.grid, **caps)

    works: dict[str, Callable[[int], Any]] = {"ours": ours}
    if find_spec("spconv"):
        tensorview = import_module("cumm.tensorview")
        voxeliser = import_module("spconv.utils").Point2VoxelCPU3d(
            vsize_xyz=list(workload.grid.voxel_size),
            coors_range_xyz=list(workload.grid.point_range),
            num_point_features=4,
            max_num_voxels=caps["max_voxels"],
            max_num_points_per_voxel=caps["max_points_per_voxel"],
        )

        def peer(turn: int) -> None:
            batch = batches[turn % len(batches)]
            for sample in range(batch.batch_size):
                points = batch.points[batch.batch_index == sample].numpy()
                stacked, _, counts = voxeliser.point_to_voxel(tensorview.from_numpy(points))
                stacked.numpy().sum(axis=1) / counts.numpy()[:, None]

        works["spconv"] = peer
    return works


def peak_memory(workload: Workload, net: str, voxels: VoxelBatch, device: str) -> float:
    """MiB that three training steps add at their peak."""
    network = networks(workload, device)[net]
    before = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else resident("VmRSS")
    for _ in range(3):
        step(network, voxels)
    after = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")
    return after - before


def resident(field: str) -> float:
    """A line of Linux's memory account of this process, in MiB; getrusage would count the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def time_workload(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one workload."""
    workload, device = WORKLOADS[name], arguments.device
    batches = clouds(workload, real=arguments.real, scratch=arguments.scratch, count=4)
    voxels = [
        voxelize(b, workload.grid, max_points_per_voxel=workload.max_points, max_voxels=workload.max_voxels)
        for b in batches
    ]
    on_device = [
        VoxelBatch(
            features=v.features.to(device),
            coordinates=v.coordinates.to(device),
            batch_size=v.batch_size,
        )
        for v in voxels
    ]
    nets = networks(workload, device)
    encoder = nets["ours fp32"].encoder
    assert isinstance(encoder, SparseEncoder)
    flops = [useful_flops(encoder, v) for v in on_device]
    rows = []
    for threads in arguments.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        measured = partial(in_turns, rounds=arguments.rounds, device=device)
        speeds = [sgemm_gflops(device)]
        for action in (forward, step):
            works = {
                n: lambda turn, net=net, do=action: do(net, on_device[turn % 4]) for n, net in nets.items()
            }
            seconds = measured(works)
            speeds.append(sgemm_gflops(device))
            for net, row in summary(seconds, "spconv").items():
                work = statistics.mean(f[action.__name__] for f in flops)
                row["share_of_gemm_limit"] = (
                    work / (row["median_ms"] / 1e3) / (statistics.median(speeds) * 1e9)
                )
                rows.append({"what": action.__name__, "net": net, "threads": threads, **row})
        seconds = measured({"ours fp32": lambda turn: build_tables(encoder, on_device[turn % 4])})
        rows.append(
            {"what": "tables", "threads": threads, "net": "ours fp32", **summary(seconds, "")["ours fp32"]}
        )
        if device == "cpu":
            for net, row in summary(measured(voxeliser_works(workload, batches)), "spconv").items():
                rows.append({"what": "voxelise", "net": net, "threads": threads, **row})
        for row in rows:
            row.setdefault("sgemm_gflops", statistics.median(speeds))
    torch.set_num_threads(1)
    for net in nets:
        rows.append(
            {"what": "peak memory", "net": net, "threads": 1, "mib": in_own_process(name, net, arguments)}
        )
    size = statistics.mean(len(v.features) for v in voxels)
    gflop = statistics.mean(f["forward"] for f in flops) / 1e9
    return [{"workload": name, "voxels": size, "forward_gflop": gflop, **row} for row in rows]


def in_own_process(workload: str, net: str, arguments: argparse.Namespace) -> float:
    """Peak memory, measured where nothing else has run."""
    command = [sys.executable, __file__, "--peak", workload, net, "--device", arguments.device]
    command += ["--scratch", str(arguments.scratch)]
    command += ["--real", str(arguments.real)] if arguments.real else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {net} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown from the rows of the JSON file."""
    lines = [
        "| workload | what | network | threads | median | times faster than spconv (quartiles) | share of GEMM limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        median = f"{row['mib']:.0f} MiB" if "mib" in row else f"{row['median_ms']:.1f} ms"
        ratio = share = ""
        if "times_faster" in row:
            ratio = "{times_faster:.2f} ({times_faster_q25:.2f}-{times_faster_q75:.2f})".format(**row)
        if "share_of_gemm_limit" in row:
            share = f"{100 * row['share_of_gemm_limit']:.0f} %"
        racy = row["net"] == "spconv" and row["threads"] > 1 and row["what"] in ("forward", "step")
        net = row["net"] + (" (wrong results)" if racy else "")
        lines.append(
            f"| {row['workload']} | {row['what']} | {net} | {row['threads']} | {median} | {ratio} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, help="KITTI object root; without it frames are simulated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="CPU threads to try")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each network")
    parser.add_argument("--workloads", nargs="*", choices=sorted(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument(
        "--scratch", type=Path, default=Path("data/benchmark"), help="cache of simulated scans"
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        name, net = arguments.peak
        workload = WORKLOADS[name]
        (batch,) = clouds(workload, real=arguments.real, scratch=arguments.scratch, count=1)
        voxels = voxelize(
            batch, workload.grid, max_points_per_voxel=workload.max_points, max_voxels=workload.max_voxels
        )
        print(peak_memory(workload, net, voxels, arguments.device))
        return
    rows = [row for name in arguments.workloads for row in time_workload(name, arguments)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"sparse_{arguments.device}.json"
    frames = "real KITTI, camera view" if arguments.real else "simulated"
    content = {"rows": rows, "frames": frames, "seed": SEED, "rounds": arguments.rounds, **provenance()}
    # Other work on the machine: two threads that share their cores with it wait for each other most of the time.
    write_json(path, content | {"load_average": os.getloadavg()})
    path.with_suffix(".md").write_text(table(rows))
    print(table(rows))
    print(path)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
