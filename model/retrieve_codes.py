"""Short binary codes of features, by an autoencoder, searched by Hamming distance (the closing remark of the paper, section 6.1).

Deep autoencoders that map pictures to 28 or 256 bits are Krizhevsky's and Hinton's ("Using Very Deep Autoencoders for Content-Based Image
Retrieval", ESANN 2011), there of small pictures, begun by learning one layer after the other. Here they are of a net's features, and the code's
logistic units are rounded to 0 or 1 in the forward pass, while the gradient passes as if they were not (after the straight-through estimator: Bengio,
Léonard, Courville, arXiv 1308.3432). Batch normalisation before the rounding: each bit is 1 for about half of the pictures.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from model.retrieve_features import Origin, progress
from model.retrieve_index import Search, faiss_or_refuse, measured
from pipeline import InputError, atomic_file

HIDDEN = 1024  # units between the features and the code, and behind it
SAMPLE = 131_072  # pictures learned from at most: 2.1 GB of fc7
BATCH, EPOCHS, RATE = 128, 5, 1e-3
SHORTLIST = 100  # nearest codes that are put in order by their features
BITS = (8, 1024)


def check_bits(bits: int) -> None:
    """Raises InputError."""
    if bits % 8 or not BITS[0] <= bits <= BITS[1]:
        raise InputError(f"--codes must be a multiple of 8 from {BITS[0]} to {BITS[1]}, since a code is kept in whole bytes, not {bits}")


class Autoencoder(nn.Module):
    """(n, width) features -> (n, width) features by way of (n, bits) zeros and ones."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        hidden, self.bits = min(HIDDEN, width), bits
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))  # one for all features, or distances would be others
        self.encode = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, bits), nn.BatchNorm1d(bits, affine=False))
        self.decode = nn.Sequential(nn.Linear(bits, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def centred(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Of centred features, their reconstruction."""
        soft = torch.sigmoid(self.encode(features))
        hard = soft + (soft.round() - soft).detach()
        out: torch.Tensor = self.decode(2 * hard - 1)
        return out

    @torch.no_grad()
    def codes(self, features: np.ndarray, batch: int = 4096) -> np.ndarray:
        """(n, width) float32 -> (n, bits / 8) uint8. The autoencoder in evaluation mode."""
        found = []
        for start in range(0, len(features), batch):
            part = torch.from_numpy(np.array(features[start : start + batch])).to(self.mean.device)
            found.append(np.packbits((self.encode(self.centred(part)) > 0).cpu().numpy(), axis=1))
        return np.concatenate(found)


@dataclass(frozen=True)
class Coded:
    """A coder and what it made of all pictures. codes: (n, bits / 8) uint8; lost: see learn; seconds: of learning and coding."""

    coder: Autoencoder
    codes: np.ndarray
    lost: float
    seconds: float


def learn(features: np.ndarray, bits: int, seed: int, device: torch.device, epochs: int = EPOCHS) -> tuple[Autoencoder, float]:
    """An autoencoder of (n, width) features, in evaluation mode, and the share of their variance that its last epoch's outputs lack."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(len(features))[:SAMPLE])
    data = torch.from_numpy(np.array(features[rows]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coder = Autoencoder(data.shape[1], bits).to(device)
    coder.mean.copy_(data.mean(dim=0))
    coder.scale.copy_((data - coder.mean.cpu()).square().mean().sqrt().clamp_min(1e-6))
    optimiser = torch.optim.Adam(coder.parameters(), lr=RATE, fused=True)
    lost = 1.0
    for epoch in progress(range(epochs), "codes", unit=" epochs"):
        order = torch.from_numpy(generator.permutation(len(data)))
        lost = _epoch(coder, data, order, optimiser, RATE * (1 - epoch / epochs))
    return coder.eval(), lost


def _epoch(coder: Autoencoder, data: torch.Tensor, order: torch.Tensor, optimiser: torch.optim.Optimizer, rate: float) -> float:
    """Mean squared error of centred features, whose variance is 1."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    parts = [rows for rows in order.split(BATCH) if len(rows) > 1]  # one alone has no variance to be divided by
    total = torch.zeros((), device=coder.mean.device)
    for rows in parts:
        batch = coder.centred(data[rows].to(coder.mean.device))
        loss = F.mse_loss(coder(batch), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.detach() * len(rows)
    return float(total) / max(1, sum(map(len, parts)))


def coded(features: np.ndarray, bits: int, seed: int, device: torch.device) -> Coded:
    began = perf_counter()
    coder, lost = learn(features, bits, seed, device)
    return Coded(coder, coder.codes(features), lost, perf_counter() - began)


def path_of(folder: Path, origin: Origin, bits: int) -> Path:
    """One file with the coder, the codes and what they are of, so that they cannot disagree."""
    return folder / f"{origin.name}-codes-{bits}.safetensors"


def write_coded(folder: Path, origin: Origin, seed: int, made: Coded) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in made.coder.state_dict().items()}
    about = {"of": json.dumps(asdict(origin)), "seed": str(seed), "lost": repr(made.lost), "seconds": repr(made.seconds)}
    with atomic_file(path_of(folder, origin, made.coder.bits)) as file:
        file.write(save({**tensors, "codes": torch.from_numpy(made.codes)}, about))


def read_coded(folder: Path, origin: Origin, bits: int, seed: int) -> Coded | None:
    """What was written of this origin with this seed; None where that is not there, or other."""
    path = path_of(folder, origin, bits)
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    if about.get("of") != json.dumps(asdict(origin)) or about.get("seed") != str(seed):
        return None
    codes = tensors.pop("codes").numpy()
    coder = Autoencoder(len(tensors["mean"]), bits)
    coder.load_state_dict(tensors)
    return Coded(coder.eval(), codes, float(about["lost"]), float(about["seconds"]))


def hamming(made: Coded) -> Search:
    """Nearest by the number of bits that differ, of all codes; the time of coding the queries is part of it."""
    faiss = faiss_or_refuse()
    index = faiss.IndexBinaryFlat(made.coder.bits)
    index.add(made.codes)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        rows: np.ndarray = index.search(made.coder.codes(queries), k)[1]
        return rows

    return search


def reranked(first: Search, features: np.ndarray) -> Search:
    """The nearest of the SHORTLIST that another search finds, by Euclidean distance of their features, which are read where they lie."""
    return lambda queries, k: measured(features, queries, first(queries, min(max(SHORTLIST, k), len(features))), k)[1]
