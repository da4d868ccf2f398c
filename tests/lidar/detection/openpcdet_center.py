"""OpenPCDet's CenterPoint by its layer tables: names and shapes of the whole state, for comparison."""

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def _norm(name, width):
    shapes = {f"{name}.{entry}": (width,) for entry in BATCH_NORM}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def residual_backbone_shapes(in_channels):
    """VoxelResBackBone8x."""
    shapes = {"backbone_3d.conv_input.0.weight": (16, 3, 3, 3, in_channels)}
    shapes |= _norm("backbone_3d.conv_input.1", 16)
    before = 16
    for stage, width in ((1, 16), (2, 32), (3, 64), (4, 128)):
        name = f"backbone_3d.conv{stage}"
        first = 0 if stage == 1 else 1
        if first:
            shapes |= {f"{name}.0.0.weight": (width, 3, 3, 3, before), **_norm(f"{name}.0.1", width)}
        for block in (first, first + 1):
            for layer in (1, 2):
                shapes[f"{name}.{block}.conv{layer}.weight"] = (width, 3, 3, 3, width)
                shapes[f"{name}.{block}.conv{layer}.bias"] = (width,)
                shapes |= _norm(f"{name}.{block}.bn{layer}", width)
        before = width
    shapes |= {"backbone_3d.conv_out.0.weight": (128, 3, 1, 1, 128), **_norm("backbone_3d.conv_out.1", 128)}
    return shapes


def center_head_shapes(in_channels, tasks, *, velocity):
    """CenterHead with these numbers of classes per task, 64 channels and two convolutions in every branch."""

    def conv(name, before, width):
        return {f"{name}.weight": (width, before, 3, 3), f"{name}.bias": (width,)}

    shapes = conv("dense_head.shared_conv.0", in_channels, 64) | _norm("dense_head.shared_conv.1", 64)
    for task, classes in enumerate(tasks):
        branches = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "hm": classes}
        if velocity:
            branches["vel"] = 2
        for branch, width in branches.items():
            name = f"dense_head.heads_list.{task}.{branch}"
            shapes |= conv(f"{name}.0.0", 64, 64) | _norm(f"{name}.0.1", 64) | conv(f"{name}.1", 64, width)
    return shapes
