"""Other libraries' models: the same loss and gradients as their own, from low-resolution logits."""

import copy
import inspect
import io
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hf_models import CONFIGS, IGNORED, SIZE, make
from torch import nn

from fastseg_losses import BCELoss, CombinedSegmentationLoss, CrossEntropyLoss
from fastseg_losses.integrations import (
    TorchvisionCriterion,
    remove_fused_loss,
    torchvision_criterion,
    transformers,
    use_fused_loss,
)

MODELS = sorted(CONFIGS)
SEGFORMER, UPERNET = "SegformerForSemanticSegmentation", "UperNetForSemanticSegmentation"


def batch(classes=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, classes, (2, SIZE, SIZE), generator=generator)
    labels[:, :5] = IGNORED
    return images, labels


def loss_and_gradients(model, *args, **options):
    model.zero_grad()
    output = model(*args, **options)
    loss = output[0] if isinstance(output, tuple) else output.loss
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return output, loss.detach(), gradients


def assert_same(before, after):
    torch.testing.assert_close(after[1], before[1], rtol=1e-5, atol=1e-6)
    assert before[2].keys() == after[2].keys()
    scale = max(gradient.abs().max() for gradient in before[2].values())
    assert scale > 1e-4
    for name, gradient in before[2].items():
        difference = (after[2][name] - gradient).abs().max()
        assert difference <= 1e-5 * scale, name


# ---- transformers


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_models_own(name):
    model, (images, labels) = make(name), batch()
    state = copy.deepcopy(model.state_dict())
    before = loss_and_gradients(model, pixel_values=images, labels=labels)
    model.load_state_dict(state)  # batch statistics
    with use_fused_loss(model):
        after = loss_and_gradients(model, pixel_values=images, labels=labels)
        assert [*model.state_dict()] == [*state]
    assert_same(before, after)
    assert type(after[0]) is type(before[0]) and [*after[0]] == [*before[0]]
    assert after[0].to_tuple()[0] is after[0].loss


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["tuple", "eval", "no labels"])
def test_every_other_way_to_call_gives_what_it_gave(name, mode):
    model, (images, labels) = make(name), batch()
    options = {"return_dict": False} if mode == "tuple" else {}
    options |= {} if mode == "no labels" else {"labels": labels}
    model.train(mode == "tuple" and name != UPERNET)  # else UperNet's logits are not upsampled
    state = copy.deepcopy(model.state_dict())
    before = model(images, **options)
    model.load_state_dict(state)
    use_fused_loss(model)
    after = model(images, **options)
    assert type(after) is type(before) and len(after) == len(before)
    if isinstance(before, tuple):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(dict(after), dict(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [SEGFORMER, UPERNET])
def test_nothing_but_the_loss_upsamples_the_logits(name, monkeypatch):
    model, (images, labels) = make(name), batch()
    given, sizes = [], []
    interpolate = F.interpolate

    def criterion(logits, labels):
        given.append(tuple(logits.shape[2:]))
        return logits.sum()

    def watched(x, *args, **options):
        full = interpolate(x, *args, **options)
        sizes.append(tuple(full.shape))
        return full

    use_fused_loss(model, criterion)
    monkeypatch.setattr(nn.functional, "interpolate", watched)
    output = model(images, labels=labels)
    assert given[0] == tuple(output.logits.shape[2:]) == (SIZE // 4, SIZE // 4)
    full = [size for size in sizes if size[2:] == (SIZE, SIZE)]
    assert full == ([] if name == SEGFORMER else 2 * [(1, 1, SIZE, SIZE)])  # placeholders


@pytest.mark.parametrize("name", [UPERNET, "BeitForSemanticSegmentation"])
def test_a_call_that_failed_leaves_nothing_for_the_next(name):
    model, (images, labels) = make(name).eval(), batch()
    state = copy.deepcopy(model.state_dict())
    before = model(images).logits
    use_fused_loss(model)
    failing = model.decode_head.register_forward_pre_hook(lambda *_: 1 / 0)
    for training in (True, False):
        with pytest.raises(ZeroDivisionError):
            model.train(training)(images, labels=labels)
    failing.remove()
    model.load_state_dict(state)  # batch statistics
    assert torch.equal(model(images).logits, before)


def test_logits_larger_than_the_labels_are_shrunk_as_the_model_does():
    model, (images, labels) = make("DPTForSemanticSegmentation", patch_size=8), batch()
    before = loss_and_gradients(model, images, labels=labels)
    assert before[0].logits.shape[-1] == 2 * SIZE
    use_fused_loss(model)
    assert_same(before, loss_and_gradients(model, images, labels=labels))


def test_without_an_auxiliary_head_there_is_one_loss():
    for name in (UPERNET, "BeitForSemanticSegmentation"):
        model, (images, labels) = make(name, use_auxiliary_head=False), batch()
        state = copy.deepcopy(model.state_dict())
        before = loss_and_gradients(model, images, labels=labels)
        model.load_state_dict(state)
        use_fused_loss(model)
        assert_same(before, loss_and_gradients(model, images, labels=labels))


def test_one_class_of_segformer():
    model, (images, labels) = make(SEGFORMER, num_labels=1), batch(2)
    labels[1, 9] = -1
    before = loss_and_gradients(model, images, labels=labels)
    use_fused_loss(model)
    assert_same(before, loss_and_gradients(model, images, labels=labels))


def test_labels_may_come_by_position_and_as_bytes():
    model, (images, labels) = make(SEGFORMER), batch()
    before = model(images, labels).loss
    use_fused_loss(model)
    assert model(images, None).loss is None
    torch.testing.assert_close(model(images, labels.byte()).loss, before)


def test_a_criterion_of_ones_own():
    model, (images, labels) = make(UPERNET), batch()
    criterion = CombinedSegmentationLoss(
        mode="multiclass", ignore_index=IGNORED, upsample="bilinear"
    )
    use_fused_loss(model, criterion)
    assert dict(model.named_children())["fused_criterion"] is criterion
    model.eval()
    output = model(images, labels=labels)
    full = CombinedSegmentationLoss(mode="multiclass", ignore_index=IGNORED)
    features = model.backbone(images).feature_maps
    aux = F.interpolate(model.auxiliary_head(features), size=(SIZE, SIZE), mode="bilinear")
    expected = full(output.logits, labels) + 0.4 * full(aux, labels)
    torch.testing.assert_close(output.loss, expected)


def test_a_criterion_moves_with_the_model():
    model = make(SEGFORMER)
    weighted = CrossEntropyLoss(class_weights=[1.0, 2.0, 3.0], upsample="bilinear")
    use_fused_loss(model, weighted)
    model.to("meta")
    assert weighted.class_weights.device.type == "meta"


def test_it_is_undone_by_the_handle_the_block_and_on_a_copy():
    model, (images, labels) = make(SEGFORMER), batch()
    own = model(images, labels=labels).loss
    constant = lambda logits, labels: logits.sum() * 0 + 7  # noqa: E731
    handle = use_fused_loss(model, constant)
    assert model(images, labels=labels).loss == 7
    twin = copy.deepcopy(model)
    handle.remove()
    handle.remove()
    assert model(images, labels=labels).loss == own
    assert twin(images, labels=labels).loss == 7
    remove_fused_loss(twin)
    assert twin(images, labels=labels).loss == own
    with use_fused_loss(model, constant), use_fused_loss(model, lambda x, y: x.sum() * 0 + 8):
        assert model(images, labels=labels).loss == 8
    assert model(images, labels=labels).loss == own
    assert not model._forward_hooks and not model._forward_pre_hooks
    left = [name for part in model.modules() for name in vars(part) if "fastseg" in name]
    assert left == []


def test_a_pickle_takes_it_along():
    model, (images, labels) = make(SEGFORMER).eval(), batch()
    for part in model.modules():
        vars(part).pop("train", None)  # the test's own, which cannot be pickled
    criterion = CombinedSegmentationLoss(
        mode="multiclass", ignore_index=IGNORED, upsample="bilinear"
    )
    use_fused_loss(model, criterion)
    file = io.BytesIO()
    torch.save(model, file)  # before its first call: transformers' own hooks come with that
    file.seek(0)
    other = torch.load(file, weights_only=False)
    expected = model(images, labels=labels).loss
    assert other(images, labels=labels).loss == expected
    remove_fused_loss(other)
    assert not hasattr(other, "fused_criterion")
    assert other(images, labels=labels).loss != expected
    assert model(images, labels=labels).loss == expected


def test_the_signature_that_trainer_reads_is_the_models():
    model = make(SEGFORMER)
    before = inspect.signature(model.forward)
    use_fused_loss(model)
    assert inspect.signature(model.forward) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [SEGFORMER, UPERNET])
def test_it_compiles(name):
    model, (images, labels) = make(name), batch()
    use_fused_loss(model)
    state = copy.deepcopy(model.state_dict())
    before = loss_and_gradients(model, images, labels=labels)
    model.load_state_dict(state)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=name == SEGFORMER)
    model.zero_grad()
    loss = compiled(images, labels=labels).loss
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same(before, (None, loss.detach(), gradients))


def test_every_model_is_tried():
    assert {*MODELS} == {*transformers.MODELS}


def test_wrong_models_and_criteria_are_named():
    with pytest.raises(TypeError, match="^model: expected one of BeitFor.*, got Conv2d; "):
        use_fused_loss(nn.Conv2d(3, 3, 1))
    model = make(SEGFORMER)
    with pytest.raises(ValueError, match="^criterion: expected a loss with upsample='bilinear'"):
        use_fused_loss(model, CrossEntropyLoss())
    with pytest.raises(TypeError, match="^criterion: expected a loss, or None, got 'ce'"):
        use_fused_loss(model, "ce")
    assert not model._forward_hooks
    one = make("MobileNetV2ForSemanticSegmentation", num_labels=1)
    with pytest.raises(ValueError, match="^criterion: .*has none for one class"):
        use_fused_loss(one)
    use_fused_loss(one, BCELoss(upsample="bilinear"))
    images, labels = batch(2)
    assert torch.isfinite(one(images, labels=labels.eq(1)).loss)


# ---- torchvision


class Segmenter(nn.Module):
    """What torchvision's models are: parts, and a forward that interpolates what heads give."""

    def __init__(self, aux: bool) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, stride=4)
        self.classifier = nn.Conv2d(4, 3, 1)
        self.aux_classifier = nn.Conv2d(4, 3, 1) if aux else None

    def forward(self, images):
        features = self.backbone(images)
        heads = {"out": self.classifier, "aux": self.aux_classifier}
        return OrderedDict(
            (name, F.interpolate(head(features), size=images.shape[-2:], mode="bilinear"))
            for name, head in heads.items()
            if head is not None
        )


def real(name):
    models = pytest.importorskip("torchvision.models.segmentation", exc_type=Exception)
    options = {"weights": None, "weights_backbone": None, "num_classes": 3}
    if not name.startswith("lraspp"):
        options["aux_loss"] = True
    return getattr(models, name)(**options)


TORCHVISION = {
    "two heads": lambda: Segmenter(aux=True),
    "one head": lambda: Segmenter(aux=False),
    "deeplabv3": lambda: real("deeplabv3_mobilenet_v3_large"),
    "fcn": lambda: real("fcn_resnet50"),
    "lraspp": lambda: real("lraspp_mobilenet_v3_large"),
}


def references_criterion(inputs, target):
    losses = {k: F.cross_entropy(x, target, ignore_index=255) for k, x in inputs.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


@pytest.mark.parametrize("kind", TORCHVISION)
def test_torchvisions_loss_and_gradients(kind):
    torch.manual_seed(0)
    model, (images, labels) = TORCHVISION[kind](), batch()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    state = copy.deepcopy(model.state_dict())
    results = []
    for fused in (False, True):
        model.load_state_dict(state)
        model.train().zero_grad()
        criterion = torchvision_criterion(model) if fused else references_criterion
        inputs = model(images)
        loss = criterion(inputs, labels)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((inputs, loss.detach(), gradients))
        sizes = {tuple(x.shape[-2:]) for x in inputs.values()}
        assert ((SIZE, SIZE) in sizes) is not fused
        assert max(max(size) for size in sizes) <= (SIZE // 4 if fused else SIZE)
    assert_same(*results)
    assert type(inputs) is OrderedDict and [*inputs] == [*results[0][0]]
    assert [*model.state_dict()] == [*state]


def test_torchvision_in_evaluation_and_undone():
    model, (images, labels) = Segmenter(aux=True), batch()
    before = model.eval()(images)
    criterion = torchvision_criterion(model)
    for x, y in zip(model(images).values(), before.values(), strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(criterion(before, labels), references_criterion(before, labels))
    twin = copy.deepcopy(model).train()
    remove_fused_loss(model)
    assert model.train()(images)["out"].shape[-2:] == (SIZE, SIZE)
    assert twin(images)["out"].shape[-2:] == (SIZE // 4, SIZE // 4)


def test_torchvisions_criterion_has_a_weight_and_a_loss_of_ones_own():
    model, (images, labels) = Segmenter(aux=True), batch()
    own = CombinedSegmentationLoss(mode="multiclass", ignore_index=IGNORED, upsample="bilinear")
    criterion = torchvision_criterion(model, own, aux_weight=0.25)
    inputs = model(images)
    expected = own(inputs["out"], labels) + 0.25 * own(inputs["aux"], labels)
    assert criterion(inputs, labels) == expected
    with pytest.raises(TypeError, match="^model: expected one of torchvision.models.segm.*Conv2d"):
        torchvision_criterion(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="^criterion: expected a loss with upsample"):
        TorchvisionCriterion(CrossEntropyLoss())
