"""Blocks that know their number get the next one, and what counts them counts on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import AddBlock, DropBlock, PlanError, resize

transformers = pytest.importorskip("transformers")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor, cached: bool) -> Tensor:
    if not cached:
        return model(tokens, use_cache=False).logits
    past, found = None, []
    for at in range(tokens.shape[1]):
        out = model(tokens[:, at : at + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize(("make", "stack"), [(llama, "model.layers"), (gpt2, "transformer.h")])
def test_logits_with_a_key_value_cache_are_those_without(make, stack: str, tmp_path: Path) -> None:
    model, tokens = make(), torch.randint(0, 32, (2, 6))
    before = logits(model, tokens, False)
    sizes = model.config.to_dict()
    with torch.no_grad():  # under which alone its rotary embedding can be traced
        added = resize(model, [AddBlock(stack)], example=tokens)
    assert added.receipt.change == 0
    assert model.config.num_hidden_layers == len(model.get_submodule(stack)) == 3
    for parameter in model.get_submodule(stack)[-1].parameters():
        nn.init.normal_(parameter, std=0.3)
    plain = logits(model, tokens, False)
    assert (plain - before).abs().max() > 1e-3  # the new block does something now
    torch.testing.assert_close(logits(model, tokens, True), plain, rtol=0, atol=1e-12)
    loaded, _ = mg.load(mg.save(model, tmp_path / "ckpt"), make)
    torch.testing.assert_close(logits(loaded.eval(), tokens, True), plain, rtol=0, atol=1e-12)
    with torch.no_grad():
        dropped = resize(model, [DropBlock(stack)], example=tokens)
    assert model.config.to_dict() == sizes
    torch.testing.assert_close(logits(model, tokens, True), before, rtol=0, atol=1e-12)
    dropped.undo()
    assert model.config.num_hidden_layers == 3


class Numbered(nn.Module):
    def __init__(self, **numbers: object) -> None:
        super().__init__()
        self.a, self.inner = nn.Linear(4, 4), nn.Identity()
        for name, value in numbers.items():
            setattr(self, name, value)
            setattr(self.inner, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(x)


def stack_of(*numbers: dict[str, object]) -> nn.Module:
    return nn.Sequential(*(Numbered(**of) for of in numbers))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([{"layer_idx": 0}, {"layer_idx": 1}], 2),
        ([{"layer_idx": 0}], 1),
        ([{"block_id": 5}, {"block_id": 6}], 7),
        ([{"place": 0}, {"place": 1}, {"place": 2}], 3),
        ([{"heads": 8}, {"heads": 8}], 8),
        ([{"pad_token_id": 0}], 0),
        ([{"pad_token_id": 0}, {"pad_token_id": 0}], 0),
        ([{"hidden": 16}, {"hidden": 24}], 24),
        ([{"dilation": 1}, {"dilation": 2}], 2),
        ([{"last": False}, {"last": True}], True),
    ],
)
def test_what_numbers_a_block_rises_and_all_else_is_copied(
    numbers: list[dict[str, object]], expected: object
) -> None:
    model, (name,) = stack_of(*numbers), numbers[0]
    applied = resize(model, [AddBlock("")], example=torch.randn(2, 4))
    assert getattr(model[-1], name) == expected
    if name != "place":  # a number by its name, on torch's own modules too
        assert getattr(model[-1].inner, name) == expected
    applied.undo()
    assert [getattr(block, name) for block in model] == [of[name] for of in numbers]


def test_numbers_without_a_next_one_are_refused() -> None:
    with pytest.raises(PlanError, match=r"'layer_idx' \[0, 3\], which gives no next number"):
        resize(
            stack_of({"layer_idx": 0}, {"layer_idx": 3}), [AddBlock("")], example=torch.randn(2, 4)
        )
    stages = nn.Sequential(
        stack_of({"layer_idx": 0}, {"layer_idx": 1}), stack_of({"layer_idx": 2}, {"layer_idx": 3})
    )
    with pytest.raises(
        PlanError, match="'layer_idx' would be 2, which a block of another stack has"
    ):
        resize(stages, [AddBlock("0")], example=torch.randn(2, 4))
    resize(stages, [AddBlock("1")], example=torch.randn(2, 4))
    assert stages[1][-1].layer_idx == 4
    apart = nn.Sequential(
        *(stack_of(*({"layer_idx": at} for at in range(count))) for count in (2, 3))
    )
    resize(apart, [AddBlock("0")], example=torch.randn(2, 4))
    assert apart[0][-1].layer_idx == 2


def test_a_count_that_may_be_of_two_stacks_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = stack_of({"i": 0}, {"i": 1}), stack_of({"i": 0}, {"i": 1})
            self.num_layers, self.layer_kinds = 2, ["a", "b"]

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.one(x))

    model = Two()
    resize(model, [AddBlock("one")], example=torch.randn(2, 4))
    assert (model.num_layers, model.layer_kinds) == (2, ["a", "b"])
    resize(model, [AddBlock("other")], example=torch.randn(2, 4))
    assert (model.num_layers, model.layer_kinds) == (3, ["a", "b", "b"])
