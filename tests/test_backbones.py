"""Every row of THE TABLE: its figures against the thesis, its channels, strides and costs against the network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from blemish.cli import app
from blemish.detector import Detector
from blemish.errors import ArgumentError, WeightsError
from blemish.features import backbones, costs
from blemish.features.backbones import BACKBONES, THESIS, custom_backbone, find_backbone
from blemish.features.extract import build_extractor
from blemish.features.ibn import InstanceBatchNorm, SqueezeExcitation, build_ibn
from blemish.features.layout import as_map, read_layout
from blemish.features.packages import import_torchvision
from blemish.features.weights import find_weights
from blemish.images.preprocess import Preprocess
from blemish.methods import PaDiM
from test_extract import plain_outputs, randomised

# The thesis' table (2022): dim a and d; None: "none", ...: "choose".
PRINTED = {
    "alexnet": (256, 100),
    **dict.fromkeys([f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")], (512, 120)),
    **dict.fromkeys(["resnet18", "resnet34"], (448, 100)),
    **dict.fromkeys(["resnet50", "resnet101", "resnet152"], (1792, 550)),
    **dict.fromkeys(["squeezenet1_0", "thesis:squeezenet1_1"], (512, 100)),
    "densenet121": (256 + 512 + 1024, ...),
    "densenet169": (256 + 512 + 1280, ...),
    "densenet161": (384 + 768 + 2112, ...),
    "densenet201": (256 + 512 + 1792, ...),
    "googlenet": (1248, 550),
    "inception_v3": (832, 220),
    "shufflenet_v2_x0_5": (336, 100),
    "shufflenet_v2_x1_0": (812, 220),
    **dict.fromkeys(["thesis:mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"], (64, None)),
    **dict.fromkeys(["resnext50_32x4d", "resnext101_32x8d"], (1792, 550)),
    **dict.fromkeys([f"timm:legacy_seresnet{depth}" for depth in (50, 101, 152)], (1792, 550)),
    **dict.fromkeys([f"timm:legacy_seresnext{depth}_32x4d" for depth in (50, 101)], (1792, 550)),
    "timm:legacy_senet154": (1792, 550),
    **dict.fromkeys(["wide_resnet50_2", "wide_resnet101_2"], (1792, 550)),
    **dict.fromkeys(["timm:resnest50d", "timm:resnest101e"], (1792, 550)),
    **dict.fromkeys(["resnet50_ibn_a", "resnet101_ibn_a", "resnext101_ibn_a", "se_resnet101_ibn_a"], (1792, 550)),
    "mnasnet0_5": (80, None),
    "mnasnet1_0": (144, None),
    **{
        f"efficientnet_b{i}": (dim, None if i <= 2 else 100)
        for i, dim in enumerate((80, 80, 88, 104, 112, 128, 144, 160))
    },
    "regnet_y_400mf": (360, 100),
    "regnet_y_800mf": (528, 150),
    "regnet_y_1_6gf": (504, 150),
    "regnet_y_3_2gf": (864, 220),
    "regnet_y_8gf": (1568, 450),
    "regnet_y_16gf": (1904, 600),
    "regnet_y_32gf": (2320, 700),
    "regnet_x_400mf": (256, 100),
    "regnet_x_800mf": (480, 100),
    "regnet_x_1_6gf": (648, 150),
    "regnet_x_3_2gf": (720, 200),
    "regnet_x_8gf": (1040, 300),
    "regnet_x_16gf": (1664, 500),
    "regnet_x_32gf": (2352, 700),
    "convnext_tiny": (96 + 192 + 384, ...),
    "convnext_small": (96 + 192 + 384, ...),
    "convnext_base": (128 + 256 + 512, ...),
    "convnext_large": (192 + 384 + 768, ...),
}


def test_the_table_has_the_thesis_and_more():
    assert set(THESIS) == set(PRINTED)
    assert len(THESIS) == 71
    assert len(BACKBONES) >= 100
    assert set(costs.table_costs()) == set(BACKBONES), "Run `python -m blemish.features.costs`."


@pytest.mark.parametrize("name", PRINTED)
def test_dim_a_and_d_of_the_thesis(name):
    dim, d = PRINTED[name]
    row = find_backbone(name)
    assert sum(row.channels) == dim  # that the network has these channels is tested below
    assert abs(row.d - 0.3 * dim) < 6 if d is ... else row.d == d


# By default the smallest network of each family, which takes a second or two; `make test-all` runs all.
LARGE = (
    "vgg|resnet34|net101|net152|net154|next101|resnest101|wide_|densenet1(69|61)|densenet201|swin_(v2_)?[sb]|deit_small|"
    "vit_(base|large)|small_patch(16_224|8|14_dinov2)|convnext_(small|base|large)|dinov3_lvd|convnextv2_(nano|tiny|base)|"
    "efficientnet_(b[1-7]|v2_[sml])|conv_(medium|large)|regnet.*([1-9](_[26])?gf|800mf)|swin_v2_t|hybrid_medium|"
    "(res|resnext|seresnext)50_32x4d|resnet50$|convnext_tiny|convnextv2_pico|pvt|mambaout|eva02|mnasnet(0_75|1)|v2_x2_0"
)
ROWS = [pytest.param(name, marks=pytest.mark.heavy if re.search(LARGE, name) else ()) for name in BACKBONES]


@pytest.mark.parametrize("name", ROWS)
def test_row_says_what_the_network_is(name):
    row = find_backbone(name)
    module = costs.hollow(row.build)
    side = 3584  # so large that a map's size is the image's over the stride, whatever the borders
    pixels = torch.empty(1, 3, side, side, device="meta")
    deepest = row.deepest or row.taps[-1]
    _, outputs = costs.trace(module, {*row.taps, deepest}, side=side)
    for tap, channels, stride in zip(row.taps, row.channels, row.strides, strict=True):
        layout = read_layout(outputs[tap], image_size=(side, side), channels=channels)
        shape = as_map(outputs[tap], tap=tap, pixels=pixels, layout=layout).shape
        assert (shape[1], shape[2] if stride == 0 else round(side / shape[2])) == (channels, stride or 1)
    as_map(outputs[deepest], tap=deepest, pixels=pixels)  # or raises
    assert costs.measure(module, row.taps) == costs.table_costs()[name], "Run `python -m blemish.features.costs`."


@pytest.mark.parametrize("name", ROWS)
def test_folded_and_trimmed_network_is_the_plain_one(name):
    side = 112 if "patch14" in name else 96 if name == "inception_v3" else 64  # as small as each takes
    row = replace(find_backbone(name), trace_size=side)
    plain = randomised(row.build())
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = plain_outputs(plain, row, pixels)
    # The extractor may have the plain network itself, which is no longer needed: a copy would not fit into 4 GB.
    for part in plain.modules():
        part._forward_hooks.clear()
    extractor = build_extractor(replace(row, build=lambda: plain), weights=plain.state_dict())
    for fast, slow, channels in zip(extractor(pixels).maps, expected, row.channels, strict=True):
        assert fast.isfinite().all()
        assert fast.shape[1] == channels
        assert (fast - as_grid(slow, channels)).abs().max() < 1e-4 * slow.abs().max()


def as_grid(output, channels):
    """What a module returned for a square image as `(1, channels, h, w)`."""
    if output.ndim == 4:
        return output if output.shape[1] == channels else output.permute(0, 3, 1, 2)
    h = int(output.shape[1] ** 0.5)
    return output[:, -h * h :].transpose(1, 2).unflatten(2, (h, h))


@pytest.mark.parametrize("name", ["mnasnet0_5", "timm:mobilenetv4_conv_small"])
def test_stored_state_is_taken_back(name):
    row = replace(find_backbone(name), trace_size=64)
    extractor = build_extractor(row, weights=find_weights(row, "random"))
    again = build_extractor(row, folded={key: value.clone() for key, value in extractor.state().items()})
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(extractor(pixels).maps, again(pixels).maps, strict=True):
        assert torch.equal(a, b)


class TestPins:
    """The weights are named, and the input is scaled as they expect it. Nothing is downloaded."""

    @pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if row.source.startswith("torchvision")])
    def test_torchvision(self, name):
        row = find_backbone(name)
        assert row.source == "torchvision IMAGENET1K_V1"
        published = import_torchvision().models.get_model_weights(row.network)["IMAGENET1K_V1"].transforms()
        if name not in ("googlenet", "inception_v3"):
            assert (row.mean, row.std) == (tuple(published.mean), tuple(published.std))

    @pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
    def test_scaling_that_torchvision_does_inside_the_network(self, name):
        row = find_backbone(name)
        network = import_torchvision().models.get_model(name, weights=None, init_weights=False, transform_input=True)
        pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD))
        ours = (pixels - torch.tensor(row.mean).view(1, 3, 1, 1)) / torch.tensor(row.std).view(1, 3, 1, 1)
        torch.testing.assert_close(network._transform_input((pixels - mean) / std), ours)
        assert not row.build().transform_input  # or it would be done twice

    @pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("timm:")])
    def test_timm(self, name):
        import_torchvision()  # timm imports torchvision at once
        from timm.models import get_pretrained_cfg

        row = find_backbone(name)
        package, _, pinned = row.source.partition(" ")
        settings = get_pretrained_cfg(pinned, allow_unregistered=False)
        assert package == "timm"
        assert pinned.startswith(name.removeprefix("timm:"))
        assert "." in pinned
        assert settings.hf_hub_id or settings.url
        assert (row.mean, row.std) == (settings.mean, settings.std)
        assert row.licence.lower().startswith(f"{settings.license};")

    def test_the_pinned_weights_are_what_is_fetched(self, monkeypatch):
        asked = []
        monkeypatch.delenv("BLEMISH_WEIGHTS", raising=False)
        monkeypatch.setattr(
            "blemish.features.packages.timm_network",
            lambda name, **kinds: asked.append((name, kinds)) or nn.Linear(1, 1),
        )
        monkeypatch.setattr(
            "torch.hub.load_state_dict_from_url", lambda url, **kinds: asked.append((url, kinds["check_hash"])) or {}
        )
        find_weights(find_backbone("timm:vit_base_patch16_224"))
        find_weights(find_backbone("resnet50_ibn_a"))
        address = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet50_ibn_a-d9d0bb7b.pth"
        assert asked == [
            ("vit_base_patch16_224.augreg2_in21k_ft_in1k", {"pretrained": True}),
            (address, True),
        ]

    def test_other_taps_have_the_same_weights(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
        torch.save({"a": torch.ones(1)}, tmp_path / "mobilenet_v2.pth")
        assert find_weights(find_backbone("thesis:mobilenet_v2"))["a"] == 1
        assert find_weights(find_backbone("mobilenet_v2"), "pretrained")["a"] == 1


class TestIbn:
    """Against torchvision's ResNet, whose parameters have the published names, with the IBN of the paper put in."""

    class Reference(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.IN, self.BN = nn.InstanceNorm2d(channels // 2, affine=True), nn.BatchNorm2d(channels // 2)

        def forward(self, maps):
            one, two = maps.chunk(2, dim=1)
            mean, var = one.mean((2, 3), keepdim=True), one.var((2, 3), correction=0, keepdim=True)
            weight, bias = (p.view(1, -1, 1, 1) for p in (self.IN.weight, self.IN.bias))
            return torch.cat([(one - mean) / (var + 1e-5).sqrt() * weight + bias, self.BN(two)], dim=1)

    @pytest.mark.parametrize(
        ("name", "depth", "options"),
        [
            ("resnet50_ibn_a", [3, 4, 6, 3], {}),
            ("resnext101_ibn_a", [3, 4, 23, 3], {"groups": 32, "width_per_group": 4}),
        ],
    )
    def test_equals_resnet_with_ibn(self, name, depth, options):
        resnet = import_torchvision().models.resnet
        reference = resnet.ResNet(resnet.Bottleneck, depth, **options)
        for layer in (reference.layer1, reference.layer2, reference.layer3):
            for block in layer:
                block.bn1 = self.Reference(block.bn1.num_features)
        randomised(reference)
        ours = build_ibn(name).eval()
        ours.load_state_dict(reference.state_dict())  # strict: the names are the same
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = reference(pixels)
            torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    def test_squeeze_and_excitation(self):
        torch.manual_seed(0)
        layer, maps = SqueezeExcitation(32), torch.randn(2, 32, 3, 4)
        first, second = (layer.get_parameter(f"fc.{i}.weight") for i in (0, 2))
        gate = (maps.mean((2, 3)) @ first.T).relu() @ second.T
        torch.testing.assert_close(layer(maps), maps * gate.sigmoid()[:, :, None, None])
        assert first.shape == (2, 32)
        network = build_ibn("se_resnet101_ibn_a")
        blocks = [block for i in range(1, 5) for block in network.get_submodule(f"layer{i}")]
        assert len(blocks) == 33
        assert all(isinstance(block.se, SqueezeExcitation) for block in blocks)
        assert [isinstance(block.bn1, InstanceBatchNorm) for block in blocks] == [True] * 30 + [False] * 3


class TestRandomWeights:
    def test_the_seed_decides_and_nothing_else(self):
        row = find_backbone("squeezenet1_1")
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = find_weights(row, "random", seed=1)
        torch.manual_seed(4)
        again, other = (find_weights(row, "random", seed=seed) for seed in (1, 2))
        key = "features.0.weight"
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])
        torch.manual_seed(3)
        find_weights(row, "random", seed=5)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("row", [find_backbone("filters"), custom_backbone(nn.Conv2d(3, 4, 3), taps=("",))])
    def test_a_row_that_brings_its_own_has_none(self, row):
        with pytest.raises(ArgumentError, match=r"weights: expected none for \w+.*, which brings its own, got random"):
            find_weights(row, "random")

    def test_it_is_in_the_model_file(self, tmp_path):
        images = torch.randint(0, 255, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        method = PaDiM(backbone="squeezenet1_1", taps=("features.4",), weights="random", seed=7, dimensions=10)
        detector = Detector(method=method, preprocess=Preprocess(64), calibration="none").fit(images.numpy())
        detector.save(tmp_path / "m.blemish")
        loaded = Detector.load(tmp_path / "m.blemish")
        assert (loaded.method.weights, loaded.method.seed) == ("random", 7)
        state, drawn = loaded.method.state(), find_weights(find_backbone("squeezenet1_1"), "random", seed=7)
        assert torch.equal(state["backbone.features.0.weight"], drawn["features.0.weight"])


def test_failed_download_of_an_address_says_what_to_do(monkeypatch):
    monkeypatch.delenv("BLEMISH_WEIGHTS", raising=False)

    def no_network(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    with pytest.raises(WeightsError, match=r"download failed \(no route to host\).*put resnet50_ibn_a\.pth into"):
        find_weights(find_backbone("resnet50_ibn_a"))


def test_one_line_adds_a_backbone(monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "backbones.md"
    (line,) = re.findall(r"^    \*_timm.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rows = eval(f"[{line}]", vars(backbones))
    monkeypatch.setattr(backbones, "BACKBONES", {row.name: row for row in rows})
    row = replace(find_backbone("timm:resnet26"), trace_size=64)
    maps = build_extractor(row)(torch.rand(1, 3, 64, 64)).maps
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 16, 16), (512, 8, 8), (1024, 4, 4)]
    assert row.source == "timm resnet26.bt_in1k"
    (listed,) = json.loads(CliRunner().invoke(app, ["list", "backbones", "--json"]).stdout)["backbones"]
    assert (listed["name"], listed["dim"], listed["multiply_adds"]) == ("timm:resnet26", 1792, None)  # not measured yet


def test_list_shows_what_a_row_costs():
    rows = json.loads(CliRunner().invoke(app, ["list", "backbones", "--json"]).stdout)["backbones"]
    assert [row["name"] for row in rows] == list(BACKBONES)
    listed = {row["name"]: row for row in rows}["resnet18"]
    # By hand: 7 x 7 x 3 x 64 weights at 112 x 112; then 4, 4 and 4 convolutions a layer, and two of 1 x 1.
    stem = 9408 * 112**2
    layer1 = 4 * 9 * 64 * 64 * 56**2
    layer2 = (9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128) * 28**2
    layer3 = (9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256) * 14**2
    assert listed["multiply_adds"] == stem + layer1 + layer2 + layer3
    resnet = import_torchvision().models.resnet18(weights=None)
    used = [module for name, module in resnet.named_children() if name not in ("layer4", "fc")]
    assert listed["parameters"] == sum(p.numel() for module in used for p in module.parameters())
    assert (listed["taps"], listed["weights"]) == (["layer1", "layer2", "layer3"], "torchvision IMAGENET1K_V1")


def test_a_misspelt_name_gets_suggestions():
    with pytest.raises(ArgumentError, match=r"such as .*mobilenet_v3_small.*, or timm:NAME, got mobilenet_v3_smal"):
        find_backbone("mobilenet_v3_smal")


class TestPixels:
    def test_are_the_means_of_cells(self):
        pixels = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
        (found,) = build_extractor(find_backbone("pixels"))(pixels).maps
        expected = pixels.view(2, 3, 32, 3, 32, 2).mean(dim=(3, 5)).reshape(2, 3072, 1, 1)
        torch.testing.assert_close(found, expected)

    def test_small_images_are_taken_too(self):
        (found,) = build_extractor(find_backbone("pixels"))(torch.full((1, 3, 16, 28), 0.25)).maps
        assert found.shape == (1, 3072, 1, 1)
        assert (found == 0.25).all()
