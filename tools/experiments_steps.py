"""The commands of each part of tools/experiments.py, in order, and where they leave what they found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# Of the sixth convolution's net (paper, section 6): maps as conv5 has in the recipe.
SIXTH = "model.conv6=64"
# On the second half of the classes: from scratch and from the first half's weights alike. few: a tenth of the pictures, and so more epochs.
TUNING = {
    "all": ("train.epochs=5", "train.drop_epochs=[4]"),
    "few": ("train.batch=16", "train.rate=0.001", "train.epochs=30", "train.drop_epochs=[25]"),
}
# As the authors' program did it: the new last layer quicker at first, conv1 still later. The epochs of `few` are a sixth as long.
GROUPS = {
    "all": ("train.last_rate_factor=10", "train.last_rate_epochs=2", "train.conv1_freeze_epoch=3"),
    "few": ("train.last_rate_factor=10", "train.last_rate_epochs=12", "train.conv1_freeze_epoch=18"),
}
# Of Figure 1's four-layer nets: most epochs of each, and of the trial of each rate; the training error to come to, percent; rates to try.
FIGURE1 = ("--pictures", "2500", "--epochs", "120", "--trial-epochs", "12", "--target", "25", "--rates", "0.002,0.005,0.01,0.02,0.05,0.1,0.2")
# VGG: all of its nets are trained alike, the deeper ones also with net A's layers to begin with; fixed scale, and drawn for each picture.
VGG = (
    "model.maps=[8, 16, 32, 64, 64]",
    "model.hidden=[256, 256]",
    "model.input=112",
    "model.dropout=0.2",
    "data.scale=[128, 128]",
    "train.batch=32",
    "train.rate=0.005",
    "train.schedule=fixed",
    "train.epochs=8",
    "train.drop_epochs=[6]",
    "train.precision=bfloat16",
)
VGG_NETS = {
    "A": ("model.vgg=A",),
    "A-LRN": ("model.vgg=A-LRN",),
    "A-jitter": ("model.vgg=A", "data.scale=[112, 176]"),
    "B": ("model.vgg=B",),
    "D": ("model.vgg=D",),
}
VGG_FROM_A = ("B", "D")
VGG_VIEWS = {  # of net A and of A-jitter
    "dense, one scale": ("--views", "dense"),
    "dense, three scales": ("--views", "dense", "--scales", "112,128,144"),
    "50 crops, one scale": ("--views", "50"),
    "both, one scale": ("--views", "both"),
}
MIXED = ("whole", "no-lrn", "no-overlap", "tanh", "every-layer")  # ablations whose nets are averaged as one kind each
NEAR = "latest"  # the checkpoint of the last epoch, whose ten views a training reports


@dataclass(frozen=True)
class Plan:
    """out: folder of everything. nets: of one kind that are averaged, at least as many as seeds. changes: KEY=VALUE of every training's recipe."""

    tar: Path
    out: Path
    size: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    nets: int = 5
    recipe: str = "tiny"
    changes: tuple[str, ...] = ()

    def shards(self, name: str) -> Path:
        return self.out / "shards" / name

    def pictures(self, name: str) -> Path:
        return self.out / "pictures" / name

    def whole(self, seed: int) -> Path:
        """The run of the whole net: the ablations' for their seeds, our own for more."""
        return self.out / "ablate" / f"whole-{seed}" if seed in self.seeds else self.out / "ensemble" / f"whole-{seed}"

    @property
    def of_one_kind(self) -> tuple[int, ...]:
        """Seeds of the nets that are averaged: those of the ablations, then the next numbers."""
        more = (seed for seed in range(len(self.seeds) + self.nets) if seed not in self.seeds)
        return (*self.seeds, *(next(more) for _ in range(self.nets - len(self.seeds))))


@dataclass(frozen=True)
class Step:
    """One command, `python WORDS`, run from the repository. name: of what it says in OUT/said/NAME.txt; makes: is there when it has ended."""

    name: str
    words: tuple[str, ...]
    makes: Path


def step(name: str, makes: Path, *words: object) -> Step:
    return Step(name, tuple(map(str, words)), makes)


def said(plan: Plan, name: str) -> Path:
    return plan.out / "said" / f"{name}.txt"


def shards(plan: Plan, name: str, source: str | None = None, *how: str) -> list[Step]:
    """Shards `name` of the pictures `source`, with their colour statistics."""
    out = plan.shards(name)
    words = ("--source", plan.pictures(source or name), "--out", out, "--size", plan.size, *how)
    return [
        step(f"shards-{name}", out / "manifest.json", "tools/make_shards.py", *words),
        step(f"colours-{name}", out / "pca.json", "tools/compute_pca.py", "--shards", out),
    ]


def training(plan: Plan, run: Path, seed: int, settings: tuple[str, ...] = (), *more: object, on: str = "all") -> Step:
    """One training, which goes on where it was stopped. on: name of its shards."""
    changed = [word for setting in (*settings, *plan.changes, f"train.seed={seed}") for word in ("--set", setting)]
    words = ("--recipe", plan.recipe, "--shards", plan.shards(on), "--run", run, "--resume", "auto", *changed, *more)
    return step("-".join(run.relative_to(plan.out).parts), run / "predictions.json", "-m", "model.train", *words)


def evaluation(plan: Plan, name: str, runs: list[Path], *more: str, on: str = "all") -> Step:
    checkpoints = [run / "checkpoints" / NEAR for run in runs]
    return step(name, said(plan, name), "-m", "model.evaluate", "--shards", plan.shards(on), *more, "--checkpoint", *checkpoints)


def ablate(plan: Plan) -> list[Step]:
    """The trainings of all ablations: what each part is worth, 224 for 227, sizes of the batch, exchange at more layers and at none."""
    changed = [word for setting in plan.changes for word in ("--set", setting)]
    words = ("--shards", plan.shards("all"), "--out", plan.out / "ablate", "--seeds", ",".join(map(str, plan.seeds)))
    return [step("ablate", plan.out / "ablate" / "ablations.json", "-m", "model.ablate", "--recipe", plan.recipe, *words, *changed)]


def ensemble(plan: Plan) -> list[Step]:
    """Nets of one kind with other seeds, and one net of each of several kinds: every one, and their average (Table 2)."""
    more = [training(plan, plan.whole(seed), seed) for seed in plan.of_one_kind if seed not in plan.seeds]
    mixed = [plan.out / "ablate" / f"{name}-{plan.seeds[0]}" for name in MIXED]
    return [*more, evaluation(plan, "average-seeds", [plan.whole(seed) for seed in plan.of_one_kind]), evaluation(plan, "average-kinds", mixed)]


def finetune(plan: Plan) -> list[Step]:
    """With the sixth convolution: trained on the first half of the classes, then on the second, beside the same net from scratch."""
    steps = [*shards(plan, "first"), *shards(plan, "second"), *shards(plan, "few")]
    for seed in plan.seeds:
        first = plan.out / "finetune" / f"first-{seed}"
        steps.append(training(plan, first, seed, (SIXTH,), on="first"))
        for pictures, on in (("all", "second"), ("few", "few")):
            runs = {kind: plan.out / "finetune" / f"{kind}-{pictures}-{seed}" for kind in ("scratch", "tuned")}
            same = (SIXTH, *TUNING[pictures])
            start = ("--init-from", first / "checkpoints" / NEAR, "--new-last-layer")
            steps.append(training(plan, runs["scratch"], seed, same, on=on))
            steps.append(training(plan, runs["tuned"], seed, (*same, *GROUPS[pictures]), *start, on=on))
    return steps


def figure1(plan: Plan) -> list[Step]:
    """Training error of a four-layer net with ReLU and with tanh, at 32 x 32."""
    out = plan.out / "figure1"
    words = ("--shards", plan.shards("all"), "--out", out, "--seeds", ",".join(map(str, plan.of_one_kind[:3])), *FIGURE1)
    return [step("figure1", out / "figure1.json", "-m", "model.figure1", *words)]


def vgg(plan: Plan) -> list[Step]:
    """VGG nets of few maps with the first seed, on whole pictures: each by ten views, net A and the jittered one also by whole pictures."""
    folder, seed, on = plan.out / "vgg", plan.seeds[0], "whole"
    plan = replace(plan, recipe="vgg")
    steps = shards(plan, on, "all", "--resize", "shorter")
    for name, keys in VGG_NETS.items():
        steps.append(training(plan, folder / name, seed, (*VGG, *keys), on=on))
        if name in VGG_FROM_A:
            start = ("--init-from", folder / "A" / "checkpoints" / NEAR)
            steps.append(training(plan, folder / f"{name}-from-A", seed, (*VGG, *keys), *start, on=on))
    for net in ("A", "A-jitter"):
        steps += [evaluation(plan, view_name(net, view), [folder / net], *how, on=on) for view, how in VGG_VIEWS.items()]
    return steps


def view_name(net: str, view: str) -> str:
    """Of the file with what the evaluation said."""
    return f"vgg-{net}-{view}".replace(", ", "-").replace(" ", "-")


def specialise(plan: Plan) -> list[Step]:
    """Whether one column's conv1 learns colour and the other's none, over the seeds."""
    out = plan.out / "specialise"
    return [step("specialise", out / "specialise.json", "-m", "model.specialise", *map(plan.whole, plan.of_one_kind), "--out", out)]


def retrieve(plan: Plan) -> list[Step]:
    """Nearest training pictures of the validation pictures: exact search, an index, codes."""
    out, checkpoint = plan.out / "retrieve", plan.whole(plan.seeds[0]) / "checkpoints" / NEAR
    return [
        step("retrieve", out / "retrieval.json", "-m", "model.retrieve", "--checkpoint", checkpoint, "--shards", plan.shards("all"), "--out", out)
    ]


@dataclass(frozen=True)
class Part:
    """needs: parts whose runs it looks at."""

    what: str
    steps: Callable[[Plan], list[Step]]
    needs: tuple[str, ...] = ()


PARTS = {
    "ablate": Part("what each part of the net is worth", ablate),
    "ensemble": Part("averages of nets", ensemble, ("ablate",)),
    "finetune": Part("trained on other classes first", finetune),
    "vgg": Part("the VGG nets", vgg),
    "figure1": Part("ReLU and tanh, epochs to a training error", figure1),
    "specialise": Part("colour in the two columns", specialise, ("ablate", "ensemble")),
    "retrieve": Part("nearest pictures", retrieve, ("ablate",)),
}
