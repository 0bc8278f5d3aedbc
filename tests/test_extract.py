from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blemish.errors import ArgumentError, WeightsError
from blemish.features.backbones import BACKBONES, Backbone, custom_backbone, find_backbone
from blemish.features.extract import build_extractor
from blemish.features.layout import as_map, read_layout
from blemish.features.packages import import_torchvision
from blemish.features.weights import find_weights, read_weights


def randomised(module, seed=0):
    """Weights and BatchNorm statistics as after training: nothing is zero or one."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * (0.05 if tensor.ndim > 1 else 0.3))
    return module.eval()


def plain_outputs(module, row, pixels):
    """The tapped outputs of the untouched network, run to its end, by hooks of the test's own."""
    found = {}
    for tap in row.taps:
        module.get_submodule(tap).register_forward_hook(lambda m, i, o, tap=tap: found.update({tap: o.clone()}))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (row.mean, row.std))
    with torch.no_grad():
        module((pixels - mean) / std)
    return [found[tap] for tap in row.taps]


PIXELS = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def small_row(name):
    """A row whose structure is read at the size of `PIXELS`."""
    return replace(find_backbone(name), trace_size=PIXELS.shape[2])


WIDE = pytest.param("wide_resnet50_2", marks=pytest.mark.heavy)
PYRAMIDS = ["filters", "resnet18", WIDE, "mobilenet_v2", "squeezenet1_1"]  # test_backbones.py has all


@pytest.mark.parametrize("name", [*PYRAMIDS, "timm:resnet18", "timm:efficientnet_b0", "timm:mobilenetv3_small_100"])
def test_equals_the_plain_network(name):
    row = small_row(name)
    plain = randomised(row.build())
    weights = {k: v.clone() for k, v in plain.state_dict().items()}
    extractor = build_extractor(row, weights=weights)
    maps = extractor(PIXELS).maps
    for fast, slow in zip(maps, plain_outputs(plain, row, PIXELS), strict=True):
        assert ((fast - slow).abs().max() / slow.abs().max()) < 1e-4
    assert tuple(m.shape[1] for m in maps) == row.channels
    assert [2 ** round(math.log2(PIXELS.shape[2] / m.shape[2])) for m in maps] == list(row.strides)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm:efficientnet_b0"])
def test_batch_norm_is_folded_and_the_rest_is_gone(name):
    row = small_row(name)
    extractor = build_extractor(row, weights=randomised(row.build()).state_dict())
    assert not [m for m in extractor.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert sum(p.numel() for p in extractor.module.parameters()) < 0.6 * sum(
        p.numel() for p in row.build().parameters()
    )
    assert not any(p.requires_grad for p in extractor.module.parameters())


def test_stored_state_gives_the_same_bits():
    row = small_row("resnet18")
    extractor = build_extractor(row, weights=randomised(row.build()).state_dict())
    again = build_extractor(row, folded=extractor.state())
    for a, b in zip(extractor(PIXELS).maps, again(PIXELS).maps, strict=True):
        assert torch.equal(a, b)


def test_structure_does_not_depend_on_the_draw_of_parameters():
    row = small_row("timm:efficientnet_b0")
    names = []
    for seed in (0, 3, 11):  # draws that magnify float32 rounding
        torch.manual_seed(seed)
        names.append(list(build_extractor(row).state()))
    assert names[0] == names[1] == names[2]


class Tricky(nn.Module):
    """Everything that could go wrong: in-place changes of a tap, an output read twice, a convolution used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.c, self.norm_c = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 5, 3, 2, 1)
        self.unused = nn.Linear(5, 1000)

    def forward(self, x):
        x = self.norm_a(self.a(x)).relu_()  # overwrites the output of norm_a
        raw = self.b(x)
        x = raw + self.norm_b(raw)  # the convolution's output is read outside the module too
        x = self.norm_c(self.c(self.c(x)))  # used twice
        return self.unused(self.last(x).mean((2, 3)))


@pytest.mark.parametrize("taps", [("norm_a", "norm_b", "last"), ("last",), ("last", "norm_a")])
def test_tricky_network_is_still_equal(taps):
    plain = randomised(Tricky())
    row = custom_backbone(plain, taps=taps, trace_size=32)
    pixels = PIXELS[:, :, :48, :64]
    maps = build_extractor(row)(pixels).maps
    for fast, slow in zip(maps, plain_outputs(plain, row, pixels), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_custom_module_is_not_changed():
    module = randomised(Tricky())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    build_extractor(custom_backbone(module, taps=("last",), trace_size=32))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_threads_do_not_mix_their_features():
    extractor = build_extractor(find_backbone("filters"))
    pictures = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    expected = [extractor(p).maps[0] for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: extractor(p).maps[0], pictures))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_batch_larger_than_one_forward_pass_is_the_same():
    extractor = build_extractor(find_backbone("filters"))
    pixels = torch.rand(11, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for whole, parts in zip(
        extractor(pixels).maps, zip(*(extractor(p[None]).maps for p in pixels), strict=True), strict=True
    ):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_works_inside_inference_mode():
    with torch.inference_mode():
        assert len(build_extractor(find_backbone("filters"))(PIXELS).maps) == 3


def test_weights_must_have_what_the_taps_need_and_may_lack_the_rest():
    row = small_row("resnet18")
    weights = {k: v for k, v in row.build().state_dict().items() if not k.startswith(("layer4", "fc"))}
    build_extractor(row, weights=weights)
    with pytest.raises(WeightsError, match=r"parameters that the taps layer4 need are missing: layer4\.0\.bn1\.bias"):
        build_extractor(row, weights=weights, taps=("layer4",))
    weights["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight: expected shape \(64, 64, 3, 3\), got an array"):
        build_extractor(row, weights=weights)


def test_stored_state_of_another_network_is_refused():
    state = build_extractor(small_row("resnet18")).state()
    with pytest.raises(WeightsError, match=r"backbone mobilenet_v2: the stored parameters do not fit"):
        build_extractor(small_row("mobilenet_v2"), folded=state)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (("layer9",), "taps: expected module names of resnet18 .*conv1, bn1.* got layer9"),
        (("layer1", "layer1"), "taps: expected different module names"),
        (
            ("avgpool", "fc"),
            r"tap fc: expected a module with output \(batch, channels, h, w\), .* got an array of shape",
        ),
    ],
)
def test_wrong_taps_are_named(taps, message):
    with pytest.raises(ArgumentError, match=message):
        build_extractor(small_row("resnet18"), taps=taps)(PIXELS)


def test_unknown_timm_model_suggests_others():
    with pytest.raises(ArgumentError, match=r"a timm model .*, got timm:resnet18x"):
        find_backbone("timm:resnet18x")


class TestLayout:
    """Every pixel of the expected map carries its own number, so that a wrong order or reading cannot pass."""

    @pytest.mark.parametrize("size", [(256, 256), (128, 192), (200, 120)])
    @pytest.mark.parametrize("prefix", [0, 1, 2, 5, 9])
    @pytest.mark.parametrize("round_side", [math.floor, math.ceil])
    def test_tokens_become_the_grid(self, size, prefix, round_side):
        h, w = (round_side(side / 14) for side in size)
        expected = torch.arange(2.0 * 3 * h * w).view(2, 3, h, w)
        tokens = torch.cat([torch.full((2, prefix, 3), -1.0), expected.flatten(2).transpose(1, 2)], 1)
        # 9 x 13 cells and 9 tokens before them could also be 9 x 14 cells: only a square image tells.
        layout = read_layout(torch.zeros(2, prefix + 14 * 14, 3), image_size=(224, 224))
        assert layout.prefix == prefix
        pixels = torch.zeros(2, 3, *size)
        assert torch.equal(as_map(tokens, tap="t", pixels=pixels, layout=layout), expected)
        if prefix < 2:
            assert torch.equal(as_map(tokens, tap="t", pixels=pixels), expected)

    @pytest.mark.parametrize(
        ("shape", "size", "channels", "last"),
        [
            ((1, 96, 8, 8), (64, 64), None, False),
            ((1, 8, 8, 96), (64, 64), None, True),
            ((1, 8, 12, 96), (64, 96), None, True),
            ((1, 96, 8, 12), (64, 96), None, False),
            ((1, 8, 8, 8), (64, 64), None, False),
            ((1, 8, 8, 9), (64, 64), 9, True),
            ((1, 8, 9, 9), (64, 72), 8, False),
            ((1, 12, 8, 12), (64, 96), 12, False),  # the channels fit both ways, the proportion only one
            ((1, 8, 12, 8), (64, 96), 8, True),
        ],
    )
    def test_where_the_channels_are(self, shape, size, channels, last):
        assert read_layout(torch.zeros(shape), image_size=size, channels=channels).channels_last is last

    def test_channels_last_is_transposed(self):
        expected = torch.arange(2.0 * 5 * 8 * 8).view(2, 5, 8, 8)
        pixels = torch.zeros(2, 3, 64, 64)
        assert torch.equal(as_map(expected.permute(0, 2, 3, 1), tap="t", pixels=pixels), expected)
        assert torch.equal(as_map(expected, tap="t", pixels=pixels), expected)

    @pytest.mark.parametrize(
        "shape",
        [(2, 1000), (8, 32, 8), (8, 4, 8, 8), (2, 18 * 18 - 1, 8), (2, 0, 8), (2, 3, 4, 8, 8)],
    )
    def test_anything_else_is_refused(self, shape):
        with pytest.raises(ArgumentError, match=r"tap t: expected .*proportion of the images, 64 : 64, got an array"):
            as_map(torch.zeros(shape), tap="t", pixels=torch.zeros(2, 3, 64, 64))


def intermediates(name, row, weights, pixels):
    """What timm itself gives as the maps of the tapped blocks of the plain network."""
    import_torchvision()  # timm imports torchvision at once
    import timm

    plain = timm.create_model(name)
    plain.load_state_dict(weights)
    indices = [[level["module"] for level in plain.feature_info].index(tap) for tap in row.taps]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (row.mean, row.std))
    with torch.no_grad():
        return plain.eval().forward_intermediates(
            (pixels - mean) / std, indices=indices, intermediates_only=True, output_fmt="NCHW"
        )


TRANSFORMERS = [
    "test_vit",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    pytest.param("vit_wee_patch16_reg1_gap_256", marks=pytest.mark.heavy),
    "vit_tiny_patch16_dinov3_qkvb",  # its position embedding is a module that is never called
    pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.heavy),
    "test_mambaout",  # channels last
    pytest.param("gmlp_ti16_224", marks=pytest.mark.heavy),
    pytest.param("xcit_nano_12_p16_224", marks=pytest.mark.heavy),
]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_equals_timms_own_maps(name):
    row = find_backbone(f"timm:{name}")
    weights = {k: v.clone() for k, v in randomised(row.build()).state_dict().items()}
    extractor = build_extractor(row, weights=weights)
    pixels = torch.rand(1, 3, row.trace_size, row.trace_size, generator=torch.Generator().manual_seed(1))
    maps = extractor(pixels).maps
    for ours, theirs in zip(maps, intermediates(name, row, weights, pixels), strict=True):
        assert ((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    assert tuple(m.shape[1] for m in maps) == row.channels
    assert [row.trace_size // m.shape[2] for m in maps] == list(row.strides)
    kept = sum(p.numel() for p in extractor.module.parameters())
    assert kept < 0.85 * sum(value.numel() for value in weights.values())
    again = build_extractor(row, folded=extractor.state())
    assert all(torch.equal(a, b) for a, b in zip(maps, again(pixels).maps, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_tiny_patch16_224", (256, 256), (16, 16)),
        ("vit_tiny_patch16_224", (128, 200), (8, 13)),  # not a multiple of the patch: padded
        ("vit_tiny_patch16_dinov3_qkvb", (64, 96), (4, 6)),
        ("swin_tiny_patch4_window7_224", (128, 192), (32, 48)),
    ],
)
def test_transformer_takes_another_size(name, size, grid):
    maps = build_extractor(find_backbone(f"timm:{name}"))(torch.rand(1, 3, *size)).maps
    assert tuple(maps[0].shape[2:]) == grid


def test_map_with_as_many_channels_as_rows_is_read_as_at_any_other_size():
    extractor = build_extractor(find_backbone("timm:test_mambaout"))
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    other = pixels.clone()
    other[:, :, 64:96, 160:192] = 1 - other[:, :, 64:96, 160:192]
    change = (extractor(pixels).maps[1] - extractor(other).maps[1]).square().sum(1)[0]
    assert change.shape == (32, 32)
    assert change[6:14, 18:26].sum() > 0.9 * change.sum()


def test_network_of_one_size_says_which():
    extractor = build_extractor(find_backbone("timm:gmlp_ti16_224"))
    with pytest.raises(ArgumentError, match=r"images: expected a size that timm:gmlp_ti16_224 takes, got 256 x 256 .*"
                       r"It takes 224 x 224: use Preprocess\(resize=224\)"):  # fmt: skip
        extractor(torch.rand(1, 3, 256, 256))


@pytest.mark.parametrize(
    ("name", "taps", "strides"),
    [
        ("test_vit", ("blocks.0", "blocks.2", "blocks.3"), (16, 16, 16)),
        ("vit_tiny_patch16_224", ("blocks.2", "blocks.5", "blocks.8"), (16, 16, 16)),
        ("test_convnext", ("stages.0", "stages.1", "stages.2"), (4, 8, 16)),
        ("shvit_s1", ("stages.0",), (16,)),  # the only level of its pyramid that is not deeper than the papers'
        ("pit_ti_224", ("transformers.0", "transformers.1"), (8, 16)),  # returns its class token beside the map
        pytest.param(  # feature_info names modules it lacks
            "mvitv2_tiny", ("stages.0", "stages.1", "stages.2"), (4, 8, 16), marks=pytest.mark.heavy
        ),
    ],
)
def test_levels_of_a_network_without_a_row(name, taps, strides):
    row = find_backbone(f"timm:{name}")
    assert (row.taps, row.strides) == (taps, strides)
    side = row.trace_size
    maps = build_extractor(row)(torch.rand(1, 3, side, side)).maps
    assert tuple(m.shape[1] for m in maps) == row.channels


def test_network_with_shuffled_tokens_is_refused():
    with pytest.raises(ArgumentError, match=r"backbone: expected a network with tokens row by row, got timm:hiera_"):
        find_backbone("timm:hiera_tiny_224")


class Borrowing(nn.Module):
    """Uses a part without calling it: no hook can see that it is needed."""

    def __init__(self):
        super().__init__()
        self.lent, self.a, self.b = nn.Linear(1, 4), nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 100)

    def forward(self, x):
        x = self.a(x) * self.lent.bias.view(1, -1, 1, 1)
        return self.head(self.b(x).mean((2, 3)))


def test_part_that_is_used_without_a_call_stays():
    plain = randomised(Borrowing())
    row = custom_backbone(plain, taps=("b",), trace_size=32)
    extractor = build_extractor(row)
    assert {name.split(".")[0] for name in extractor.state()} == {"lent", "a", "b"}
    torch.testing.assert_close(extractor(PIXELS).maps[0], plain_outputs(plain, row, PIXELS)[0])
    weights = plain.state_dict()
    del weights["lent.bias"]
    with pytest.raises(WeightsError, match=r"that the taps b need are missing: lent\.bias"):
        build_extractor(row, weights=weights)


SLOW = ("resnet18", "mobilenet_v2", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("name", ["filters", *(pytest.param(name, marks=pytest.mark.heavy) for name in SLOW)])
def test_bfloat16_is_near_and_half_the_size(name):
    row = small_row(name)
    weights = randomised(row.build()).state_dict()
    exact = build_extractor(row, weights=weights)
    rough = build_extractor(row, weights=weights, precision="bfloat16")
    maps = rough(PIXELS).maps
    for near, far in zip(maps, exact(PIXELS).maps, strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - far).norm() < 0.02 * far.norm()
    sizes = [sum(t.numel() * t.element_size() for t in e.state().values()) for e in (rough, exact)]
    assert 2 * sizes[0] == sizes[1]
    again = build_extractor(row, folded=rough.state(), precision="bfloat16")
    assert all(torch.equal(a, b) for a, b in zip(maps, again(PIXELS).maps, strict=True))


def test_parameters_are_folded_before_they_are_rounded():
    row = small_row("resnet18")
    weights = randomised(row.build()).state_dict()
    exact = build_extractor(row, weights=weights).state()
    rough = build_extractor(row, weights=weights, precision="bfloat16").state()
    assert all(torch.equal(rough[name], exact[name].bfloat16()) for name in exact)


def test_unknown_precision_is_named():
    with pytest.raises(ArgumentError, match="precision: expected float32 or bfloat16 on torch, got float16"):
        build_extractor(find_backbone("filters"), precision="float16")


class TestWeights:
    def test_order_file_then_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
        torch.save({"a": torch.zeros(1)}, tmp_path / "resnet18.pth")
        torch.save({"a": torch.ones(1)}, tmp_path / "mine.pth")
        row = find_backbone("resnet18")
        assert find_weights(row)["a"] == 0
        assert find_weights(row, tmp_path / "mine.pth")["a"] == 1

    def test_row_without_weights_needs_none(self):
        assert find_weights(find_backbone("filters")) is None

    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
    def test_wrappings(self, tmp_path, wrap):
        torch.save(wrap({"module.a.b": torch.zeros(2)}), tmp_path / "w.pth")
        assert list(read_weights(tmp_path / "w.pth")) == ["a.b"]

    def test_safetensors(self, tmp_path):
        save_file({"a": torch.ones(3)}, tmp_path / "w.safetensors")
        assert read_weights(tmp_path / "w.safetensors")["a"].sum() == 3

    def test_bad_files_are_named(self, tmp_path):
        with pytest.raises(WeightsError, match=r"none\.pth: the file does not exist"):
            read_weights(tmp_path / "none.pth")
        (tmp_path / "junk.pth").write_bytes(b"junk")
        with pytest.raises(WeightsError, match=r"junk\.pth: cannot be read as a state dict"):
            read_weights(tmp_path / "junk.pth")
        torch.save([torch.ones(1)], tmp_path / "list.pth")
        with pytest.raises(WeightsError, match=r"expected names mapped to tensors"):
            read_weights(tmp_path / "list.pth")

    def test_failed_download_says_what_to_do(self, monkeypatch, caplog):
        monkeypatch.delenv("BLEMISH_WEIGHTS", raising=False)

        def no_network(*_args, **_kwargs):
            raise OSError("no route to host")

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
        with pytest.raises(WeightsError, match=r"download failed \(no route to host\).*--weights FILE.*`compact`"):
            find_weights(find_backbone("resnet18"))
        assert "from the hub, once" in caplog.text


def test_rows_know_what_they_need():
    for name, row in BACKBONES.items():
        assert isinstance(row, Backbone)
        assert row.name == name
        assert len(row.taps) == len(row.channels) == len(row.strides)
        assert row.licence
        assert row.d is None or row.d < sum(row.channels)
