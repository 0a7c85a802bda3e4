"""Optimisers, rates, and the loss that they make small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from edgecls.manifest import Preprocessing
from edgecls.train.data.survey import Survey
from edgecls.train.fit.lookahead import Lookahead
from edgecls.train.fit.losses import Loss, class_weights, guessing_loss
from edgecls.train.fit.optimizers import OptimizerOptions, make_optimizer, make_plateau, make_schedulers
from edgecls.train.fit.recipes import recipe_of
from edgecls.train.networks.models import build
from edgecls.train.options import TrainOptions
from edgecls.train.recipe_options import Balance, NetworkOptions, RecipeOptions, Schedule


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norms_and_biases_are_not_decayed(name: str) -> None:
    model = network()
    optimizer = make_optimizer(model, OptimizerOptions(name, 0.1, 0.05), {})  # type: ignore[arg-type]
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p.ndim > 1: decay for p, decay in decays.items()} == {True: 0.05, False: 0.0}
    assert set(decays) == set(model.parameters())


def test_frozen_weights_are_left_out_and_scales_lower_the_rate() -> None:
    model = network()
    model[0].requires_grad_(False)
    scales = dict.fromkeys(model[1].parameters(), 0.25)
    optimizer = make_optimizer(model, OptimizerOptions("sgd", 0.1, 0.0), scales)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates.values()) == {0.1, 0.025}
    assert all(p not in rates for p in model[0].parameters())
    assert all(rates[p] == 0.025 for p in model[1].parameters())


def rates(schedule: Schedule, n_steps: int = 100, warmup: float = 0.2) -> list[float]:
    options = OptimizerOptions("sgd", 1.0, 0.0, schedule=schedule, warmup=warmup)
    optimizer = make_optimizer(network(), options, {})
    (described,) = make_schedulers(optimizer, options, n_steps, lambda step: step / n_steps)
    seen = []
    for _ in range(n_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        described["scheduler"].step()
    return seen


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant", "onecycle"])
def test_the_rate_rises_to_its_peak_and_never_above(schedule: Schedule) -> None:
    seen = rates(schedule)
    assert seen[0] < 0.1
    assert max(seen) == pytest.approx(1.0, abs=0.01)
    assert seen[:20] == sorted(seen[:20])
    assert seen[21:] == sorted(seen[21:], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.0), ("linear", 0.0), ("step", 0.01), ("constant", 1.0), ("onecycle", 0.0)]
)
def test_the_rate_ends_where_its_schedule_says(schedule: Schedule, last: float) -> None:
    assert rates(schedule, 1000)[-1] == pytest.approx(last, abs=0.002)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates("cosine", warmup=0.0)[0] == 1.0


def test_a_plateau_divides_the_rate_and_warm_up_does_not_undo_it() -> None:
    options = OptimizerOptions("sgd", 1.0, 0.0, schedule="plateau", warmup=0.1)
    optimizer = make_optimizer(network(), options, {})
    ((rises,), falls) = (
        [each["scheduler"] for each in make_schedulers(optimizer, options, 100, lambda step: step / 100)],
        make_plateau(optimizer),
    )
    for _epoch in range(10):
        for _step in range(10):
            optimizer.step()
            rises.step()
        falls.step(1.0)  # the validation loss never falls
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_class_weights_are_those_of_scikit_learn() -> None:
    targets = torch.tensor([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    weights = class_weights(targets, 3, "weights")
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected.tolist())


def test_the_root_goes_half_of_the_way_to_equal_classes_and_keeps_the_mean() -> None:
    targets = torch.tensor([0] * 16 + [1] * 4 + [2])
    weights = class_weights(targets, 3, "root")
    assert weights is not None
    assert (weights / weights[0]).tolist() == pytest.approx([1, 2, 4])
    assert weights[targets].mean().item() == pytest.approx(1)
    assert class_weights(targets, 3, "none") is None
    assert class_weights(targets, 3, "sampling") is None


@pytest.mark.parametrize("balance", ["none", "root", "weights"])
def test_guessing_loses_what_a_constant_answer_loses_at_best(balance: Balance) -> None:
    targets = torch.tensor([0] * 16 + [1] * 4 + [2])
    weights = class_weights(targets, 3, balance)
    constant = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=200)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(constant.expand(21, 3), targets, weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert guessing_loss(targets, 3, 0.0, balance) == pytest.approx(closure().item(), abs=1e-4)


class Fixed(nn.Module):
    """Stands for a teacher: it says the same of every picture."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_with_a_teacher_the_loss_is_the_published_sum() -> None:
    torch.manual_seed(0)
    logits, taught, targets = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = Loss(0.0, None, Fixed(taught), temperature=3.0, teacher_weight=0.6)  # type: ignore[arg-type]
    p, q = (taught / 3).softmax(1), (logits / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.4 * F.cross_entropy(logits, targets) + 0.6 * 9 * divergence
    assert torch.isclose(loss(logits, targets, logits), expected)


def test_a_student_that_answers_as_its_teacher_has_nothing_more_to_learn_of_it() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = Loss(0.0, None, Fixed(logits), teacher_weight=1.0)  # type: ignore[arg-type]
    assert loss(logits, targets, logits) == pytest.approx(0.0, abs=1e-5)


def test_weights_return_to_their_slow_average_which_holds_them_the_longer_the_training_is() -> None:
    # one weight, moved to the number of its step; every second of 10 steps the slow one follows
    model = nn.Linear(1, 1, bias=False)
    lookahead = Lookahead(2, lambda step: step / 10)
    slow, seen = 2.0, []
    for step in range(1, 11):
        nn.init.constant_(model.weight, float(step))
        lookahead.step(model, step)
        seen.append(model.weight.item())
        if step % 2 == 0:
            keep = 0.95**2 * (step / 10) ** 3
            slow = keep * slow + (1 - keep) * step
            assert seen[-1] == pytest.approx(slow)
    assert seen[::2] == [1, 3, 5, 7, 9]
    assert seen[1] == pytest.approx(2.0)
    assert seen[9] < 8


def test_training_ends_at_the_slow_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    lookahead = Lookahead(5, lambda step: step / 7)  # 7 is no multiple of 5
    for step in range(1, 8):
        nn.init.constant_(model[1].running_mean, float(step))
        lookahead.step(model, step)
    assert 5 < model[1].running_mean[0] < 7
    assert all(map(torch.equal, lookahead.slow, (v for v in model.state_dict().values() if v.is_floating_point())))


SURVEY = Survey(n_images=1000, largest=500, smallest=500, side=300, aspect=1.0, is_grey=False)
SMALL = Preprocessing((32, 32))


def backbone_of(network: NetworkOptions) -> nn.Module:
    return build(replace(network, weights="none"), 10, (32, 32))[0].backbone


@pytest.mark.parametrize(
    ("network", "optimizer", "lr"),
    [
        pytest.param(NetworkOptions("resnet9"), "sgd", 0.1, id="batch norm everywhere"),
        pytest.param(NetworkOptions("cnn"), "sgd", 0.1, id="no fully connected layer"),
        pytest.param(NetworkOptions("cnn", hidden=(100, 50)), "adam", 1e-3, id="fully connected, without batch norm"),
        pytest.param(NetworkOptions("cnn", batch_norm="none"), "adam", 1e-3, id="no batch norm"),
        pytest.param(NetworkOptions("mlp", batch_norm="none"), "adam", 1e-3, id="a perceptron without batch norm"),
        pytest.param(NetworkOptions("mlp"), "sgd", 0.1, id="a perceptron"),
        pytest.param(NetworkOptions("vgg11", "none"), "adam", 1e-4, id="a published network without batch norm"),
        pytest.param(NetworkOptions("vgg11_bn", "none"), "sgd", 0.1, id="a published network with batch norm"),
        pytest.param(NetworkOptions("linear"), "adamw", 1e-4, id="logistic regression"),
        pytest.param(NetworkOptions("airbench"), "sgd", 0.1875 * 2, id="airbench, in batches of 256"),
        pytest.param(NetworkOptions("efficientnet_lite0"), "adamw", 5e-4, id="trained weights"),
    ],
)
def test_a_network_is_trained_by_what_it_bears(network: NetworkOptions, optimizer: str, lr: float) -> None:
    rest = recipe_of(TrainOptions(network=network), SURVEY, SMALL, backbone_of(network)).rest
    assert rest is not None
    assert (rest.name, rest.lr) == (optimizer, pytest.approx(lr))


def test_who_asks_for_sgd_on_a_network_without_batch_norm_gets_a_rate_that_it_bears() -> None:
    options = TrainOptions(network=NetworkOptions("cnn", batch_norm="none"), recipe=RecipeOptions(optimizer="sgd"))
    rest = recipe_of(options, SURVEY, SMALL, backbone_of(options.network)).rest
    assert rest is not None
    assert (rest.name, rest.lr, rest.weight_decay) == ("sgd", pytest.approx(0.01), 5e-4)
