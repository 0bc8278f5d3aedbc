from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blemish.errors import ArgumentError, WeightsError
from blemish.features.backbones import BACKBONES, Backbone, custom_backbone, find_backbone
from blemish.features.extract import build_extractor
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


PIXELS = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*BACKBONES, "timm:resnet18", "timm:efficientnet_b0", "timm:mobilenetv3_small_100"])
def test_equals_the_plain_network(name):
    row = find_backbone(name)
    plain = randomised(row.build())
    weights = {k: v.clone() for k, v in plain.state_dict().items()}
    extractor = build_extractor(row, weights=weights)
    maps = extractor(PIXELS).maps
    for fast, slow in zip(maps, plain_outputs(plain, row, PIXELS), strict=True):
        assert ((fast - slow).abs().max() / slow.abs().max()) < 1e-4
    assert tuple(m.shape[1] for m in maps) == row.channels
    assert [round(224 / m.shape[2] / 4) * 4 for m in maps] == list(row.strides)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm:efficientnet_b0"])
def test_batch_norm_is_folded_and_the_rest_is_gone(name):
    row = find_backbone(name)
    extractor = build_extractor(row, weights=randomised(row.build()).state_dict())
    assert not [m for m in extractor.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert sum(p.numel() for p in extractor.module.parameters()) < 0.6 * sum(
        p.numel() for p in row.build().parameters()
    )
    assert not any(p.requires_grad for p in extractor.module.parameters())


def test_stored_state_gives_the_same_bits():
    row = find_backbone("resnet18")
    extractor = build_extractor(row, weights=randomised(row.build()).state_dict())
    again = build_extractor(row, folded=extractor.state())
    for a, b in zip(extractor(PIXELS).maps, again(PIXELS).maps, strict=True):
        assert torch.equal(a, b)


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
    row = find_backbone("resnet18")
    weights = {k: v for k, v in row.build().state_dict().items() if not k.startswith(("layer4", "fc"))}
    build_extractor(row, weights=weights)
    with pytest.raises(WeightsError, match=r"parameters that the taps layer4 need are missing: layer4\.0\.bn1\.bias"):
        build_extractor(row, weights=weights, taps=("layer4",))
    weights["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight: expected shape \(64, 64, 3, 3\), got an array"):
        build_extractor(row, weights=weights)


def test_stored_state_of_another_network_is_refused():
    state = build_extractor(find_backbone("resnet18")).state()
    with pytest.raises(WeightsError, match=r"backbone mobilenet_v2: the stored parameters do not fit"):
        build_extractor(find_backbone("mobilenet_v2"), folded=state)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (("layer9",), "taps: expected module names of resnet18 .*conv1, bn1.* got layer9"),
        (("layer1", "layer1"), "taps: expected different module names"),
        (("avgpool", "fc"), r"tap fc: expected a module with output \(batch, channels, h, w\), got an array of shape"),
    ],
)
def test_wrong_taps_are_named(taps, message):
    with pytest.raises(ArgumentError, match=message):
        build_extractor(find_backbone("resnet18"), taps=taps)(PIXELS)


def test_unknown_timm_model_suggests_others():
    with pytest.raises(ArgumentError, match=r"a timm model .*, got timm:resnet18x"):
        find_backbone("timm:resnet18x")


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
        with pytest.raises(WeightsError, match=r"download failed \(no route to host\).*--weights FILE.*`filters`"):
            find_weights(find_backbone("resnet18"))
        assert "from the hub, once" in caplog.text


def test_rows_know_what_they_need():
    for name, row in BACKBONES.items():
        assert isinstance(row, Backbone)
        assert row.name == name
        assert len(row.taps) == len(row.channels) == len(row.strides)
        assert row.licence
        assert row.d is None or row.d < sum(row.channels)
