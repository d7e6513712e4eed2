"""A policy inside the trainers of others: the optimizer follows, and resumed equals
uninterrupted.
"""

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphogen import RunError
from morphogen.policies.gradmax import GradMax
from morphogen.policies.prune_expand import PruneAndExpand

warnings.filterwarnings("ignore")


def holds_the_live_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return (
        {id(p) for p in held}
        == {id(p) for p in model.parameters()}
        == {id(p) for p in optimizer.state}
    )


def points() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=draw)
    return x, x[:, :1] * x[:, 1:2]


class TestLightning:
    @staticmethod
    def parts(folder: Path, epochs: int):
        pl = pytest.importorskip("lightning.pytorch")
        from morphogen.integrations.lightning import Growth

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

            def training_step(self, batch, index):
                return F.mse_loss(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters(), lr=1e-2)

        x, y = points()
        growth = Growth(
            GradMax(every=1, granularity=2),
            lambda net: (net(x) - y).square().mean(1).detach(),
            x[:2],
            every=3,
            network="net",
            loss=lambda net: F.mse_loss(net(x), y),
        )
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[
                growth,
                pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1),
            ],
        )
        return Module(), trainer, growth, DataLoader(TensorDataset(x, y), batch_size=16)

    def test_resumed_equals_uninterrupted(self, tmp_path: Path) -> None:
        whole, trainer, growth, data = self.parts(tmp_path / "a", 4)
        trainer.fit(whole, data)
        assert whole.net[0].out_features > 4
        assert growth.changes
        assert holds_the_live_parameters(whole, trainer.optimizers[0])
        half, trainer, _, data = self.parts(tmp_path / "b", 2)
        trainer.fit(half, data)
        again, trainer, growth, data = self.parts(tmp_path / "b", 4)
        trainer.fit(again, data, ckpt_path=tmp_path / "b" / "epoch=1.ckpt")
        assert holds_the_live_parameters(again, trainer.optimizers[0])
        assert all(
            torch.equal(t, again.state_dict()[name]) for name, t in whole.state_dict().items()
        )


class TestTransformers:
    @staticmethod
    def parts(folder: Path, steps: int, model: nn.Module | None = None):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        from morphogen.integrations.transformers import Growth

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=6,
            max_position_embeddings=5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = model or transformers.BertForSequenceClassification(config)
        draw = torch.Generator().manual_seed(1)
        words = torch.randint(11, (32, 5), generator=draw)
        rows = [{"input_ids": row, "labels": int(row[0] > 5)} for row in words]
        labels = torch.tensor([row["labels"] for row in rows])

        def losses(m: nn.Module) -> Tensor:
            return F.cross_entropy(m.eval()(words).logits.detach(), labels, reduction="none")

        growth = Growth(PruneAndExpand(granularity=2, threshold=0.0), losses, (words[:2],), every=2)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            save_steps=4,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            lr_scheduler_type="constant",
            logging_strategy="no",
        )
        return (
            model,
            transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[growth]),
            growth,
            words,
        )

    def test_the_optimizer_follows_and_resumed_equals_uninterrupted(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        from morphogen.integrations.transformers import regrown

        whole, trainer, growth, words = self.parts(tmp_path / "a", 8)
        fresh = copy.deepcopy(whole)
        trainer.train()
        assert len(growth.changes) == 4
        assert holds_the_live_parameters(whole, trainer.optimizer.optimizer)
        _, trainer, _, _ = self.parts(tmp_path / "b", 4)
        trainer.train()
        checkpoint = tmp_path / "b" / "checkpoint-4"
        model = regrown(fresh, checkpoint, (words[:2],))
        assert isinstance(model, BertForSequenceClassification)
        again, trainer, growth, _ = self.parts(tmp_path / "b", 8, model)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert len(growth.changes) == 2
        assert holds_the_live_parameters(again, trainer.optimizer.optimizer)
        assert all(
            torch.equal(t, again.state_dict()[name]) for name, t in whole.state_dict().items()
        )

    def test_a_checkpoint_without_a_ledger_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        from morphogen.integrations.transformers import regrown

        with pytest.raises(
            RunError, match=r"holds no morphogen.json: it was written without Growth"
        ):
            regrown(nn.Linear(2, 2), tmp_path, (torch.randn(2, 2),))
