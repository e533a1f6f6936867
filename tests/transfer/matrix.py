"""Every transfer mode on every encoder: how a pair is built, stepped, and computed by hand."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tiny import TinyComplement, TinyMain
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusionkit import registry
from fusionkit.encoders.base import ComplementEncoder, ExtraTokens, MainEncoder
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.main_only import MainOnly
from fusionkit.fusion.model import FusionModel
from fusionkit.testing import Case
from fusionkit.transfer.base import Transfer
from fusionkit.transfer.frozen import Frozen

ENCODERS = Path(__file__).resolve().parent.parent / "encoders"
sys.path.insert(0, str(ENCODERS))

CASES: dict[str, dict[str, Callable[[str], Case]]] = {}
for _file in sorted(ENCODERS.glob("cases_*.py")):
    CASES |= import_module(_file.stem).CASES

# label -> name in the registry and arguments
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("frozen", {}),
    "prompt": ("prompt", {"length": 2, "dropout": 0.0}),
    "shallow": ("prompt", {"length": 2, "dropout": 0.0, "shallow": True}),
    "prefix": ("prefix", {"length": 2, "dropout": 0.0, "hidden_dim": 4}),
    "fine_tune": ("fine_tune", {}),
    "last_layer": ("fine_tune", {"last_layers": 1}),
    "lora": ("lora", {"rank": 2, "alpha": 3.0}),
    "adapter": ("adapter", {"dim": 8}),
    "bias_only": ("bias_only", {}),
    "norm_only": ("norm_only", {}),
}

OWN_PROMPTS = ("prompt", "shallow", "prefix")
NEED_LAYERS = (*OWN_PROMPTS, "last_layer")

# What an encoder has nothing for, and so refuses.
LACKS = {
    "bow": {"bias_only", "norm_only"},
    "hashed_ngrams": {"bias_only", "norm_only"},
    "vector": {"lora", "bias_only", "norm_only"},
}
# Their input takes no further tokens.
NO_TOKENS = {"hubert", "timm_swin", "torchaudio_bundle", "wav2vec2", "wavlm"}


def of_plugins(group: str) -> set[str]:
    files = ENCODERS.parent.parent.glob("plugins/*/pyproject.toml")
    points = [tomllib.loads(file.read_text())["project"].get("entry-points", {}) for file in files]
    return {name for point in points for name in point.get(group, {})}


MAIN = {*registry.entries("main_encoder"), *of_plugins("fusionkit.main_encoders")}
COMPLEMENT = {
    *registry.entries("complement_encoder"),
    *of_plugins("fusionkit.complement_encoders"),
}
# Real weights, which its reference takes from their file; the encoder is `bert`.
LEFT_OUT = {"minilm"}
# name -> the variant that goes through all modes
USUAL = {
    name: name if name in variants else next(iter(variants))
    for name, variants in CASES.items()
    if name in (MAIN | COMPLEMENT) - LEFT_OUT
}


def refuses(mode: str, name: str) -> bool:
    if mode in NEED_LAYERS and name not in MAIN:
        return True
    return mode in LACKS.get(name, ()) or (mode == "shallow" and name in NO_TOKENS)


def make_plain(case: Case) -> Any:
    """The encoder as it comes; the same weights at every call."""
    torch.manual_seed(0)
    return case.make().double().eval()


def make_transfer(mode: str, encoder: ComplementEncoder) -> Transfer:
    name, arguments = MODES[mode]
    return registry.load("transfer", name)(encoder, **arguments).double()


@dataclass
class Pair:
    """An encoder under a mode, in a model that has made three steps.

    Attributes:
        plain: The encoder without the mode.
        model: The mode's encoder in its place: main if it has layers, else complement.
        before: The model's state before the steps.
        inputs: A batch of all samples.
    """

    mode: str
    case: Case
    plain: Any
    model: FusionModel
    before: dict[str, Tensor]
    inputs: dict[str, Tensor]
    role: str = field(init=False)

    def __post_init__(self) -> None:
        self.role = "main" if isinstance(self.plain, MainEncoder) else "complement"

    @property
    def transfer(self) -> Any:
        return self.model.fusion.encoders[self.role]

    @property
    def batch(self) -> dict[str, dict[str, Tensor]]:
        """Inputs of both roles."""
        return batch_of(self.role, self.inputs)

    @property
    def trained(self) -> set[str]:
        return {n for n, p in self.transfer.named_parameters() if p.requires_grad}


def batch_of(role: str, inputs: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    width, other = (6, "complement") if role == "main" else (24, "main")
    size = len(next(iter(inputs.values())))
    rows = torch.randn(size, width, generator=torch.Generator().manual_seed(3)).double()
    return {role: inputs, other: {"x": rows}}


def make_model(mode: str, encoder: ComplementEncoder, seed: int) -> FusionModel:
    """The encoder in the role it can have, beside a frozen tiny one that is always the same.

    What the mode and the fusion add is drawn from ``seed``.
    """
    torch.manual_seed(1)
    tiny = TinyComplement() if isinstance(encoder, MainEncoder) else TinyMain()
    torch.manual_seed(seed)
    transfer, other = make_transfer(mode, encoder), Frozen(tiny.double())
    if not transfer.takes_prompts:
        return FusionModel(MainOnly(transfer, []), 2).double()
    main, complement = (transfer, other) if isinstance(encoder, MainEncoder) else (other, transfer)
    options = {"experts": 2, "prompt_length": 2, "mapper_dim": 4, "dropout": 0.0, "noise": 0.0}
    return FusionModel(ConditionalPrompt(main, [complement], **options), 2).double()


def make_pair(mode: str, case: Case) -> Pair:
    plain = make_plain(case)
    preprocessor = plain.preprocessor(train=False)
    inputs = preprocessor.collate([preprocessor(sample) for sample in case.samples])
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    model = make_model(mode, make_plain(case), seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pair = Pair(mode, case, plain, model, before, inputs)
    step(pair)
    return pair


def step(pair: Pair) -> None:
    """Three, as an update whose second factor is zero does not move its first at once."""
    pair.model.train()
    optimizer = torch.optim.Adam([p for p in pair.model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss(pair.model, pair.batch).backward()
        optimizer.step()
    pair.model.eval()


def loss(model: FusionModel, batch: Any) -> Tensor:
    logits = model(batch).logits
    return (logits - torch.tensor([1.0, -1.0], dtype=torch.float64)).square().sum()


# ------------------------------------------------------------------------------- by hand


def owners(plain: Any) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of all modules inside the layers, or of all where there are none."""
    scope = plain.layers if isinstance(plain, MainEncoder) else [plain]
    inside = {id(module) for part in scope for module in part.modules()}
    for path, module in plain.named_modules():
        if id(module) in inside:
            yield path, module


def expected_names(mode: str, plain: Any) -> set[str]:
    """What a mode trains, told from names and shapes alone; of lora, the weights it updates."""
    names = {name for name, _ in plain.named_parameters()}
    if mode == "fine_tune":
        return {f"encoder.{name}" for name in names}
    if mode == "last_layer":
        last = {id(weight) for weight in plain.layers[-1].parameters()}
        return {f"encoder.{name}" for name, w in plain.named_parameters() if id(w) in last}
    if mode == "bias_only":
        return {f"encoder.{name}" for name in names if name.endswith("bias")}
    if mode == "norm_only":  # no other module has a vector for its weight
        return {
            f"encoder.{path}.{name}"
            for path, module in plain.named_modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) == 1
            for name, _ in module.named_parameters(recurse=False)
        }
    if mode == "lora":
        return {
            f"{path}.{name}"
            for path, module in owners(plain)
            for name, weight in module.named_parameters(recurse=False)
            if weight.ndim > 1 and name.endswith("weight") and getattr(module, "groups", 1) == 1
            if not type(module).__module__.startswith("fusionkit")
        }
    count = len(plain.layers) if isinstance(plain, MainEncoder) else 1
    if mode == "prompt":
        return {f"prompts.rows.{width}" for width in plain.layer_widths}
    if mode == "shallow":
        return {f"prompts.rows.{plain.layer_widths[0]}"}
    if mode == "prefix":
        return {"rows.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"}
    if mode == "adapter":
        parts = ("down.weight", "down.bias", "up.weight", "up.bias")
        return {f"adapters.{i}.{part}" for i in range(count) for part in parts}
    return set()


def updated_weights(names: set[str]) -> set[str]:
    """The weights, as the plain encoder names them, that lora's parameters belong to."""
    found = set()
    for name in names:
        path, _, rest = name.removeprefix("encoder.").partition(".lora_")
        assert rest.startswith(("A", "B")), name
        owner, is_read, parameter = path.partition(".parametrizations.")
        found.add(f"{owner}.{parameter.split('.')[0] if is_read else 'weight'}")
    return found


def with_updates(pair: Pair) -> Any:
    """A plain encoder whose weights are those of the mode, lora's updates added by hand."""
    adapted, plain = pair.transfer.encoder.state_dict(), make_plain(pair.case)
    scale = MODES["lora"][1]["alpha"] / MODES["lora"][1]["rank"]
    state = {}
    for name in plain.state_dict():
        path, _, leaf = name.rpartition(".")
        read = f"{path}.parametrizations.{leaf}"
        if f"{read}.original" in adapted:
            b, a = adapted[f"{read}.0.lora_B"], adapted[f"{read}.0.lora_A"]
            weight = adapted[f"{read}.original"]
            state[name] = weight + scale * (b @ a).reshape(weight.shape)
        elif f"{path}.base_layer.{leaf}" in adapted:
            state[name] = adapted[f"{path}.base_layer.{leaf}"]
            if leaf == "weight":
                b, a = (adapted[f"{path}.lora_{x}.default.weight"] for x in "BA")
                update = scale * (b.flatten(1) @ a.flatten(1))
                turned = isinstance(plain.get_submodule(path), Conv1D)
                update = update.T if turned else update.reshape(state[name].shape)
                state[name] = state[name] + update
        else:
            state[name] = adapted[name]
    plain.load_state_dict(state)
    return plain


def bottleneck(transfer: Any, number: int, x: Tensor) -> Tensor:
    part = transfer.adapters[number]
    hidden = (x @ part.down.weight.T + part.down.bias).clamp(min=0)
    return x + hidden @ part.up.weight.T + part.up.bias


def prompt_rows(pair: Pair) -> list[Tensor] | None:
    """Prompts of each layer: random ones, or those the mode has itself; none if shallow."""
    size = len(next(iter(pair.inputs.values())))
    if pair.mode == "shallow":
        return None
    if pair.mode == "prompt":
        return [row.expand(size, -1, -1) for row in pair.transfer.prompts.rows.in_order()]
    if pair.mode == "prefix":
        first, _, second = pair.transfer.mlp
        hidden = (pair.transfer.rows.weight @ first.weight.T + first.bias).tanh()
        rows = hidden @ second.weight.T + second.bias
        return [row.expand(size, -1, -1) for row in rows.split(pair.plain.layer_widths, dim=1)]
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(size, 3, width, generator=generator, dtype=torch.float64)
        for width in pair.plain.layer_widths
    ]


def encode(pair: Pair, rows: list[Tensor] | None, encoder: Any = None) -> Tensor:
    """Pooled features of the transferred encoder, or of another one."""
    inputs = {name: tensor.clone() for name, tensor in pair.inputs.items()}
    if rows is None or (encoder is None and not pair.transfer.takes_prompts):
        return (encoder or pair.transfer)(inputs).pooled
    return (encoder or pair.transfer).encode(inputs, lambda layer, state: rows[layer]).pooled


def unused(pair: Pair) -> set[str]:
    """Weights that this encoder has no use for, such as a table of categories without any."""
    plain = make_plain(pair.case)
    plain.requires_grad_(True)
    pooled = encode(pair, None, plain)
    if pooled.requires_grad:
        (pooled * torch.randn_like(pooled)).sum().backward()
    return {n for n, p in plain.named_parameters() if p.grad is None or not p.grad.any()}


def reference(pair: Pair, prompts: list[Tensor] | None) -> Tensor:
    """Pooled features by concatenation in upstream's code, updates and adapters added by hand."""
    plain, transfer = with_updates(pair), pair.transfer
    inputs = {name: tensor.clone() for name, tensor in pair.inputs.items()}
    if not isinstance(plain, MainEncoder):
        pooled = plain.encode(inputs).pooled
        return bottleneck(transfer, 0, pooled) if pair.mode == "adapter" else pooled
    run = pair.case.reference_layer
    own = None
    if pair.mode == "shallow":
        (row,) = transfer.prompts.rows.in_order()
        own = ExtraTokens(row.expand(len(next(iter(inputs.values()))), -1, -1))
    state, place = (plain.embed(inputs), 0) if own is None else plain.embed_with(inputs, own)
    for layer in range(len(plain.layers)):
        rows = None if prompts is None else prompts[layer]
        if rows is None or run is None:
            state = plain.run_layer(layer, state, rows)
        else:
            state = run(plain, layer, state, rows)
        if pair.mode == "adapter":
            state = state.with_tokens(bottleneck(transfer, layer, state.tokens))
    if own is not None:
        left = [i for i in range(state.tokens.shape[1]) if not 0 <= i - place < len(row)]
        keep = None if state.keep is None else state.keep[:, left]
        state = replace(state, tokens=state.tokens[:, left], keep=keep)
    return plain.readout(state).pooled
