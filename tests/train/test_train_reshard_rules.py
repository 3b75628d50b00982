"""What a checkpoint of another number of ranks becomes, rule by rule (docs/library.md), and what is refused: which object, what was expected, what to do."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from alone_ranks import after, images_of, rewritten
from fake_agent import FakeAgent, Image
from test_train_registered_objects import WithMetric
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler, TensorDataset

import holdfast
from holdfast import rng, sharding
from holdfast.loader import Position
from holdfast.redistribute import redistributed
from holdfast_api.ranks import LoadFailed

Script = Callable[[int, int], Any]


def trained(ckpt: holdfast.Checkpointer, steps: int) -> None:
    ckpt.restore()
    for _ in range(steps):
        ckpt.step()
    ckpt.finish()


class TestWhatIsARanksOwn:
    @pytest.mark.parametrize("persistent", [False, True])
    def test_states_of_metrics_come_from_rank_r_mod_n(self, tmp_path: Path, persistent: bool) -> None:
        def first(rank: int, _: int) -> None:
            model = WithMetric(persistent)
            model.metric.update(torch.tensor(10.0 + rank))
            trained(holdfast.Checkpointer(model=model), 1)

        def second(_: int, __: int) -> Any:
            model = WithMetric(persistent)
            holdfast.Checkpointer(model=model).restore()
            return float(model.metric.total), [float(v) for v in model.metric.seen]

        images = images_of(tmp_path / "a", 2, first)
        found, _ = after(tmp_path / "b", images, 3, second)
        assert found == [(10.0, [10.0]), (11.0, [11.0]), (10.0, [10.0])]

    def test_other_objects_too_and_it_is_said_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def first(rank: int, _: int) -> None:
            trained(holdfast.Checkpointer(note=holdfast.Value(f"of {rank}"), same=holdfast.Value(7)), 1)

        def second(_: int, __: int) -> Any:
            note, same = holdfast.Value(""), holdfast.Value(0)
            holdfast.Checkpointer(note=note, same=same).restore()
            return note.value, same.value

        images = images_of(tmp_path / "a", 3, first)
        caplog.clear()
        found, _ = after(tmp_path / "b", images, 4, second)
        assert found == [("of 0", 7), ("of 1", 7), ("of 2", 7), ("of 0", 7)]
        said = [r.getMessage() for r in caplog.records if "was not the same on all ranks" in r.getMessage()]
        assert len(said) == 1
        assert "note" in said[0]

    def test_parameters_that_nobody_says_are_equal_too(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def first(rank: int, _: int) -> None:
            model = nn.Linear(2, 2)
            nn.init.constant_(model.weight, float(rank))
            trained(holdfast.Checkpointer(model=model), 1)

        def second(_: int, __: int) -> float:
            model = nn.Linear(2, 2)
            holdfast.Checkpointer(model=model).restore()
            return float(model.weight[0, 0])

        images = images_of(tmp_path / "a", 2, first)
        found, _ = after(tmp_path / "b", images, 3, second)
        assert found == [0.0, 1.0, 0.0]
        assert "nothing says that model.weight" in caplog.text

    def test_generators_never_repeat_and_are_the_same_numbers_each_time(self, tmp_path: Path) -> None:
        def first(rank: int, _: int) -> None:
            torch.manual_seed(rank)
            random.seed(rank)
            trained(holdfast.Checkpointer(own=torch.Generator().manual_seed(rank), die=random.Random(rank)), 1)

        def second(_: int, __: int) -> Any:
            own, die = torch.Generator(), random.Random()
            holdfast.Checkpointer(own=own, die=die).restore()
            return torch.rand(1).item(), random.random(), torch.rand(1, generator=own).item(), die.random()

        images = images_of(tmp_path / "a", 2, first)
        draws = [after(tmp_path / f"b{n}", images, 3, second)[0] for n in range(2)]
        assert draws[0] == draws[1], "however often it is loaded"
        for kind in zip(*draws[0], strict=True):
            assert len(set(kind)) == 3, "other numbers on every rank"


class Odd(IterableDataset[int]):
    """A place in it says nothing about what other ranks have read."""

    def __iter__(self) -> Any:
        return iter(range(12))


def reads(loader: Callable[[int, int], Any], stop: int, allow: tuple[str, ...] = (), epochs: int = 2) -> Script:
    """Reads on to boundary `stop`; gives the samples, and the epoch of each."""

    def script(rank: int, world: int) -> list[tuple[int, int]]:
        batches = loader(rank, world)
        ckpt = holdfast.Checkpointer(loader=batches)
        ckpt.restore(allow=allow)
        found = []
        for batch in ckpt.batches(batches, epochs=epochs):
            values = batch[0] if isinstance(batch, list) else batch
            found += [(ckpt.epoch, int(i)) for i in values]
            ckpt.step()
            if ckpt.boundary >= stop:
                break
        ckpt.finish()
        return found

    return script


def distributed(count: int = 24, seed: int = 3, **options: Any) -> Callable[[int, int], Any]:
    def build(rank: int, world: int) -> Any:
        data = TensorDataset(torch.arange(count))
        return DataLoader(data, 2, sampler=DistributedSampler(data, world, rank, seed=seed), **options)

    return build


def odd(_: int, __: int) -> Any:
    return DataLoader(Odd(), 2)


class Mine(SequentialSampler):
    """A sampler of the user's own."""


def mine(_: int, __: int) -> Any:
    data = TensorDataset(torch.arange(12))
    return DataLoader(data, 2, sampler=Mine(data))


class TestTheRestOfAnEpoch:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_dealt_out_anew_and_the_next_epoch_is_whole(self, tmp_path: Path, workers: int) -> None:
        first = reads(distributed(), 2)
        images = images_of(tmp_path / "a", 3, first)
        gone = {i for rank in range(3) for i in [*DistributedSampler(range(24), 3, rank, seed=3)][:4]}  # type: ignore[arg-type]
        found, _ = after(tmp_path / "b", images, 2, reads(distributed(num_workers=workers), 99))
        rest = [i for rank in found for epoch, i in rank if epoch == 0]
        assert sorted(rest) == sorted(set(range(24)) - gone)
        assert sorted(i for rank in found for epoch, i in rank if epoch == 1) == [*range(24)]

    @pytest.mark.parametrize(
        ("loader", "what"),
        [(odd, "the loader is not read by one of torch's own samplers"), (mine, "torch's own samplers")],
    )
    def test_that_is_not_known_is_refused_unless_it_may_begin_again(
        self, tmp_path: Path, loader: Any, what: str
    ) -> None:
        images = images_of(tmp_path / "a", 2, reads(loader, 3))
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "b", images, 3, reads(loader, 99))
        words = str(refused.value)
        for part in ("loader: ", "epoch 0", "DataLoader", "2 ranks", what, 'ckpt.restore(allow=("epoch-start",))'):
            assert part in words
        found, _ = after(tmp_path / "c", images, 3, reads(loader, 99, allow=("epoch-start",)))
        assert found == [[(0, i) for i in range(12)] + [(1, i) for i in range(12)]] * 3

    def test_of_a_data_set_of_another_size_is_refused_with_both_sizes(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, reads(distributed(24), 2))
        with pytest.raises(holdfast.RestoreError, match="the data set had 24 samples and has 30"):
            after(tmp_path / "b", images, 3, reads(distributed(30), 99))
        found, _ = after(tmp_path / "c", images, 3, reads(distributed(30), 99, allow=("epoch-start",)))
        assert sorted(i for rank in found for epoch, i in rank if epoch == 0) == [*range(30)]

    def test_that_was_begun_again_is_not_taken_for_half_read_by_a_third_number_of_ranks(self, tmp_path: Path) -> None:
        """Else what the given-up pass had handed out would be left out of the new one."""
        images = images_of(tmp_path / "a", 2, reads(distributed(24), 2))
        _, agent = after(tmp_path / "b", images, 3, reads(distributed(30), 4, allow=("epoch-start",)))
        images = [agent.newest(rank) for rank in range(3)]
        with pytest.raises(holdfast.RestoreError, match="epoch-start"):
            after(tmp_path / "c", images, 4, reads(distributed(30), 99))

    def test_of_more_samples_than_have_bits_is_known_by_their_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("holdfast.ledger.EXACT_SAMPLES", 8)
        images = images_of(tmp_path / "a", 3, reads(distributed(), 2))
        found, _ = after(tmp_path / "b", images, 2, reads(distributed(), 99))
        gone = {i for rank in range(3) for i in [*DistributedSampler(range(24), 3, rank, seed=3)][:4]}  # type: ignore[arg-type]
        assert sorted(i for rank in found for epoch, i in rank if epoch == 0) == sorted(set(range(24)) - gone)
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "c", images, 2, reads(distributed(seed=4), 99))
        assert "the first 12 samples of epoch 0 as DistributedSampler gives them are not those" in str(refused.value)
        assert 'allow=("sample-order",)' in str(refused.value)
        found, _ = after(tmp_path / "d", images, 2, reads(distributed(seed=4), 99, allow=("sample-order",)))
        assert len([1 for rank in found for epoch, _ in rank if epoch == 0]) == 12

    def test_is_a_rank_s_own_where_every_rank_reads_everything(self, tmp_path: Path) -> None:
        def shuffled(_: int, __: int) -> Any:
            return DataLoader(
                TensorDataset(torch.arange(12)), 2, shuffle=True, generator=torch.Generator().manual_seed(9)
            )

        (whole,) = (
            r
            for r in after(tmp_path / "0", images_of(tmp_path / "z", 1, reads(shuffled, 1)), 2, reads(shuffled, 99))[0][
                :1
            ]
        )
        images = images_of(tmp_path / "a", 2, reads(shuffled, 1))
        found, _ = after(tmp_path / "b", images, 3, reads(shuffled, 99))
        assert found == [whole] * 3
        assert len(whole) == 22

    def test_a_loader_that_is_not_registered_is_put_to_its_place_when_it_is_first_read(self, tmp_path: Path) -> None:
        def script(stop: int) -> Script:
            def run(rank: int, world: int) -> list[int]:
                loader = distributed()(rank, world)
                ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
                ckpt.restore()
                found = []
                for (batch,) in ckpt.batches(loader, epochs=1):
                    found += batch.tolist()
                    ckpt.step()
                    if ckpt.boundary >= stop:
                        break
                ckpt.finish()
                return found

            return run

        images, seen = images_of(tmp_path / "a", 3, script(2)), 12
        gone = {i for rank in range(3) for i in [*DistributedSampler(range(24), 3, rank, seed=3)][:4]}  # type: ignore[arg-type]
        for world, stop in ((2, 4), (4, 99)):
            found, agent = after(tmp_path / str(world), images, world, script(stop))
            now = [i for rank in found for i in rank]
            assert not gone & {*now}
            gone |= {*now}
            seen += len(now)
            images = [agent.newest(rank) for rank in range(world)]
        assert gone == {*range(24)}
        assert seen == 24


class TestAnAccumulationWindow:
    def first(self, _: int, __: int) -> None:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
        ckpt.restore()
        for _n in range(3):
            model(torch.ones(1, 2)).sum().backward()
            if _n == 0:
                optimizer.step()
                optimizer.zero_grad()
            ckpt.step()
        ckpt.finish()

    def second(self, allow: tuple[str, ...]) -> Script:
        def run(_: int, __: int) -> tuple[int, bool]:
            model = nn.Linear(2, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            boundary = holdfast.Checkpointer(model=model, optimizer=optimizer).restore(allow=allow)
            return boundary, model.weight.grad is None

        return run

    def test_is_refused_unless_its_gradients_may_be_left_out(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, self.first)
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "b", images, 1, self.second(()))
        words = str(refused.value)
        for part in (
            "made inside an accumulation window",
            "gradient.model.weight",
            "2 ranks",
            'allow=("open-window",)',
        ):
            assert part in words
        found, agent = after(tmp_path / "c", images, 1, self.second(("open-window",)))
        assert found == [(3, True)]
        assert not any(r.source.startswith("gradient.") for r in agent.parts_wanted[0].regions), "nor are they read"

    def test_both_words_are_needed_where_both_are_at_hand_and_one_error_says_both(self, tmp_path: Path) -> None:
        def script(allow: tuple[str, ...], steps: int) -> Script:
            def run(rank: int, world: int) -> int:
                model, loader = nn.Linear(2, 2), odd(rank, world)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
                ckpt.restore(allow=allow)
                for n, _ in enumerate(ckpt.batches(loader, epochs=1)):
                    if n == steps:
                        break
                    model(torch.ones(1, 2)).sum().backward()
                    ckpt.step()
                ckpt.finish()
                return ckpt.boundary

            return run

        images = images_of(tmp_path / "a", 2, script((), 2))
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "b", images, 1, script((), 0))
        assert "epoch-start" in str(refused.value)
        assert "open-window" in str(refused.value)
        for half in ("epoch-start", "open-window"):
            with pytest.raises(holdfast.RestoreError):
                after(tmp_path / f"c-{half}", images, 1, script((half,), 0))
        assert after(tmp_path / "d", images, 1, script(("epoch-start", "open-window"), 0))[0] == [2]


def with_optimizer(lr: Callable[[int], float] = lambda _: 0.1, size: int = 2, **options: Any) -> Script:
    def run(rank: int, _: int) -> None:
        model = nn.Linear(2, size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr(rank))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, options.get("every", lambda _: 5)(rank))
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler)
        ckpt.restore(allow=options.get("allow", ()))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step()
        ckpt.finish()

    return run


@pytest.fixture
def lone_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("lone_group")
class TestZeRO:
    def script(self, _: int, __: int) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = nn.Linear(2, 2)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.1)
        ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
        ckpt.restore()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step()
        ckpt.finish()

    def of_two_shares(self, folder: Path) -> list[Image]:
        """The one rank's image twice; each keeps the name of one parameter, and the other's state lies in the other image."""
        return [images_of(folder / str(n), 1, self.script)[0] for n in (0, 1)]

    def test_a_checkpoint_of_a_release_that_named_no_shares_is_loaded_by_as_many_ranks(self, tmp_path: Path) -> None:
        images = [rewritten(i, lambda d: d["parts"]["optimizer"].pop("share")) for i in self.of_two_shares(tmp_path)]
        with pytest.raises(
            holdfast.RestoreError, match=r"optimizer: .*load it by as many ranks as made it, and save once"
        ):
            after(tmp_path / "b", images, 1, self.script)

    def test_a_parameter_that_is_in_nobody_s_share_is_named(self, tmp_path: Path) -> None:
        images = [
            rewritten(i, lambda d: d["parts"]["optimizer"].update(share=["model.weight", "x"]))
            for i in self.of_two_shares(tmp_path)
        ]
        with pytest.raises(
            holdfast.RestoreError, match=r"optimizer: no rank of the checkpoint has model\.bias in its share"
        ):
            after(tmp_path / "b", images, 1, self.script)

    def test_state_of_another_shape_than_its_parameter_needs_a_mesh_of_as_many_dimensions(self) -> None:
        like = distribute_tensor(torch.zeros(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(
            holdfast.RestoreError, match=r"optimizer\.state\.0\.row was placed .*use a mesh of as many dimensions"
        ):
            sharding.box_for((4,), ("S(0)", "S(1)"), like, "optimizer.state.0.row")
        assert sharding.box_for((4,), ("S(0)",), like, "x")[:2] == (sharding.Box((4,), (0,)), (4,))
        assert sharding.box_for((4,), ("R", "R"), like, "x")[2] == ("R",), "on every rank whole, whatever the mesh"


class TestWhatDoesNotFit:
    def test_settings_of_an_optimizer_that_differ(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, with_optimizer(lambda rank: 0.1 + rank))
        with pytest.raises(
            holdfast.RestoreError, match="optimizer: the settings of rank 1 of the checkpoint are not those of rank 0"
        ):
            after(tmp_path / "b", images, 3, with_optimizer())

    def test_schedulers_that_differ(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 3, with_optimizer(every=lambda rank: 5 + (rank == 2)))
        with pytest.raises(
            holdfast.RestoreError, match="scheduler: the state of rank 2 of the checkpoint are not those of rank 0"
        ):
            after(tmp_path / "b", images, 2, with_optimizer())

    def test_another_shape(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, with_optimizer())
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "b", images, 3, with_optimizer(size=5))
        assert "the checkpoint of 2 ranks cannot be loaded by 3:" in str(refused.value)
        assert "model.weight: (5, 2) here, (2, 2) in the checkpoint" in str(refused.value)
        assert "model.bias: (5,) here, (2,) in the checkpoint" in str(refused.value)

    def test_a_part_that_not_every_rank_had(self, tmp_path: Path) -> None:
        def first(rank: int, _: int) -> None:
            more = {"note": holdfast.Value(1)} if rank else {}
            trained(holdfast.Checkpointer(model=nn.Linear(2, 2), **more), 1)

        images = images_of(tmp_path / "a", 2, first)
        for order in (images, images[::-1]):
            with pytest.raises(holdfast.RestoreError, match=r"note.*is not in the state of every rank"):
                after(
                    tmp_path / f"b{order[0].path.name}",
                    order,
                    1,
                    lambda _, __: trained(holdfast.Checkpointer(model=nn.Linear(2, 2), note=holdfast.Value(2)), 0),
                )

    def test_what_is_missing_and_extra_is_allowed_by_the_same_exact_names(self, tmp_path: Path) -> None:
        def first(_: int, __: int) -> None:
            trained(
                holdfast.Checkpointer(
                    model=nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}), note=holdfast.Value(1)
                ),
                1,
            )

        def second(allow: tuple[str, ...]) -> Script:
            def run(_: int, __: int) -> int:
                model = nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
                return holdfast.Checkpointer(model=model, tally=holdfast.Value(1)).restore(allow=allow)

            return run

        images = images_of(tmp_path / "a", 2, first)
        with pytest.raises(holdfast.RestoreError) as refused:
            after(tmp_path / "b", images, 3, second(()))
        said = str(refused.value)
        line = said[said.index("ckpt.restore(allow=") + len("ckpt.restore(allow=") :].rpartition(")")[0]
        assert after(tmp_path / "c", images, 3, second(eval(line)))[0] == [1] * 3

    def test_fewer_data_files(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        data.mkdir()
        for name in "abc":
            (data / name).write_text(name)

        def script(allow: tuple[str, ...]) -> Script:
            def run(_: int, __: int) -> int:
                ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
                ckpt.describe(data_files=str(data))
                boundary = ckpt.restore(allow=allow)
                ckpt.step()
                ckpt.finish()
                return boundary

            return run

        images = images_of(tmp_path / "a", 2, script(()))
        (data / "b").unlink()
        with pytest.raises(holdfast.RestoreError, match=r"data_files: 2 files .* 3 files"):
            after(tmp_path / "b", images, 3, script(()))
        assert after(tmp_path / "c", images, 3, script(("data-files",)))[0] == [1] * 3

    def test_a_state_that_names_a_tensor_which_the_image_lacks_is_a_damaged_checkpoint(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, with_optimizer())

        def change(document: Any) -> None:
            document["parts"]["model"]["state"]["weight"]["$tensor"] = "model.w"

        images[1] = rewritten(images[1], change)
        _, agent = after(tmp_path / "b", images, 2, with_optimizer())  # whose agent has nothing older to offer
        assert agent.heard(LoadFailed, 0) == []
        (failed,) = agent.heard(LoadFailed, 1)
        assert failed.of_checkpoint
        assert "the state of rank 1 names the tensor model.w, which is not in its image" in failed.message

    @pytest.mark.parametrize("words", [("epoch-starts",), ("open_window",), ("open-window", "Epoch-Start")])
    def test_words_that_mean_nothing_are_refused_with_those_that_are_known(
        self, tmp_path: Path, words: tuple[str, ...]
    ) -> None:
        with pytest.raises(ValueError, match="is unknown; known are") as refused:
            images_of(tmp_path, 1, lambda _, __: holdfast.Checkpointer(note=holdfast.Value(1)).restore(allow=words))
        for word in ("sample-order", "data-files", "epoch-start", "open-window"):
            assert word in str(refused.value)

    def test_the_words_change_nothing_where_the_number_of_ranks_is_the_same(self, tmp_path: Path) -> None:
        both = ("epoch-start", "open-window")
        with FakeAgent(tmp_path) as agent, agent.as_environment():
            TestAnAccumulationWindow().first(0, 1)
            agent.restore_from = {0: [agent.newest()]}
            boundary, left_out = TestAnAccumulationWindow().second(both)(0, 1)
        assert (boundary, left_out) == (3, False)


class Keeps(DataLoader[Any]):
    """Keeps its place by itself, as torchdata's does."""

    place = 0

    def __iter__(self) -> Any:
        for at in range(self.place, 3):
            self.place = at + 1
            yield torch.tensor([at])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class TestALoaderThatKeepsItsPlace:
    """Beside one whose place is counted."""

    def script(self, stop: int, allow: tuple[str, ...] = ()) -> Script:
        def run(rank: int, world: int) -> tuple[list[int], list[int]]:
            own, plain = Keeps(TensorDataset(torch.arange(3)), 1), distributed()(rank, world)
            ckpt = holdfast.Checkpointer(own=own, plain=plain)
            ckpt.restore(allow=allow)
            kept, counted = [], []
            for loader, found in ((own, kept), (plain, counted)):
                for batch in ckpt.batches(loader, epochs=1):
                    found += (batch[0] if isinstance(batch, list) else batch).tolist()
                    ckpt.step()
                    if ckpt.boundary >= stop:
                        break
                if ckpt.boundary >= stop:
                    break
            ckpt.finish()
            return kept, counted

        return run

    def test_begins_its_epoch_again_where_that_is_allowed_and_the_other_one_goes_on(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, self.script(2))
        with pytest.raises(holdfast.RestoreError, match=r"own keeps its own place \(Keeps\)"):
            after(tmp_path / "b", images, 3, self.script(99))
        found, _ = after(tmp_path / "c", images, 3, self.script(99, ("epoch-start",)))
        assert [kept for kept, _ in found] == [[0, 1, 2]] * 3
        assert sorted(i for _, counted in found for i in counted) == [*range(24)]

    def test_between_two_epochs_is_as_the_script_made_it_and_the_other_one_goes_on(self, tmp_path: Path) -> None:
        images = images_of(tmp_path / "a", 2, self.script(5))
        found, _ = after(tmp_path / "b", images, 3, self.script(99))
        gone = {i for rank in range(2) for i in [*DistributedSampler(range(24), 2, rank, seed=3)][:4]}  # type: ignore[arg-type]
        rest = [i for _, counted in found for i in counted]
        assert {*rest} == {*range(24)} - gone
        assert len(rest) == 18, "16, padded so that three share them evenly"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_of_directory_mode_is_refused_by_name_and_not_called_damaged(tmp_path: Path, ranks: int) -> None:
    """By its own number of ranks, one, as by another."""
    (image,) = images_of(
        tmp_path / "a", 1, lambda _, __: trained(holdfast.Checkpointer(note=holdfast.Value("x" * 99)), 1)
    )

    def change(document: Any) -> None:
        document.clear()
        document["directory"] = {"schema": 1, "name": "checkpoint-1", "files": []}

    rewritten(image, change)
    with FakeAgent(tmp_path / "b") as agent, agent.as_environment(0, ranks):
        agent.restore_from = {0: [image]}
        agent.other_world = [image] if ranks > 1 else []
        with pytest.raises(holdfast.RestoreError, match="was made in directory mode"):
            holdfast.Checkpointer(note=holdfast.Value("")).restore()
        agent.wait(lambda: bool(agent.heard(LoadFailed)), "the rank's words")
        assert not agent.heard(LoadFailed)[0].of_checkpoint


def place(epoch: int, batch: int, rank: int) -> dict[str, Any]:
    """Of rank `rank` of two, of a loader whose samples are counted."""
    start = rng.capture() | {"owned": []}
    loader = distributed()(rank, 2)
    position = Position(loader)
    for _ in position.run(epoch + 1, lambda: None):
        if position.epoch == epoch and position.batch == batch:
            position.at_boundary()
            break
    return position.state() | {"start": start}


class TestOnePlaceOfTwo:
    def test_ranks_that_stand_in_different_epochs_go_on_at_none_unless_the_earliest_may_begin_again(self) -> None:
        """Between two epochs each, where nothing else would be asked."""
        states = [place(2, 1, 0) | {"inside": False, "batch": 0}, place(1, 1, 1) | {"inside": False, "batch": 0}]
        with pytest.raises(
            holdfast.RestoreError, match=r"in the middle of epoch 1 .* the ranks stand in different epochs"
        ):
            redistributed(states, distributed()(0, 3), 0, 3, restart=False)
        found = [redistributed(states, distributed()(r, 3), r, 3, restart=True) for r in range(3)]
        assert [(f["epoch"], f["batch"], f["inside"]) for f in found] == [(1, 0, False)] * 3

    def test_worker_processes_of_different_ranks_are_given_different_seeds(self) -> None:
        """What they draw for a sample must not be the same on all ranks; an order that is drawn is the one that was begun."""
        states = [place(0, 1, rank) for rank in range(2)]
        starts = [redistributed(states, distributed()(r, 3), r, 3, restart=False)["start"] for r in range(3)]
        assert starts[0] == states[0]["start"]
        assert len({s["torch"] for s in starts}) == 3


def test_what_was_asked_of_one_checkpoint_is_not_taken_for_what_is_offered_next(tmp_path: Path) -> None:
    """The damaged one was of another number of ranks; the next has the same number in this agent's words, and is loaded as it is."""

    def script(weight: float) -> Script:
        def run(_: int, __: int) -> tuple[float, str]:
            model, note = nn.Linear(2, 2), holdfast.Value(f"of {weight}")
            ckpt = holdfast.Checkpointer(model=model, note=note)
            if not ckpt.restore():
                nn.init.constant_(model.weight, weight)
                ckpt.step()
            ckpt.finish()
            return float(model.weight.detach()[0, 0]), note.value

        return run

    damaged = images_of(tmp_path / "a", 2, script(float("nan")))
    good = images_of(tmp_path / "b", 1, script(7.0))
    with FakeAgent(tmp_path / "c") as agent, agent.as_environment():
        agent.other_world, agent.restore_from = damaged, {0: good}
        assert script(0.0)(0, 1) == (7.0, "of 7.0")
        assert agent.heard(LoadFailed)[0].of_checkpoint
