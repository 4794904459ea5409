"""The bare loop: `python -m benchmarks.bare_loop CONFIG DATA OUT`, in plain PyTorch.

No Flower, no Ray, no files; of ours only the models. It makes the passes of our run of the same
config (strategy `entropy`, everybody takes part); each process owns some clients for the whole run.
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch

from fedkd import models


def load(data):
    facts = json.loads(Path(data, "data.json").read_text())
    x, y = (torch.from_numpy(np.load(Path(data, f"{name}.npy"))) for name in "xy")
    splits = {path.stem: np.load(path) for path in Path(data, "splits").glob("*.npy")}
    x = (x.float() / 255).sub_(facts["mean"][0]).div_(facts["std"][0])
    return x, y, splits, (x.shape[1:], facts["classes"])


def build(spec, sizes):
    model = getattr(models, spec["name"])(*sizes, **{k: spec[k] for k in spec if k != "name"})
    return model.to(memory_format=torch.channels_last)


def train(model, x, target, learning, rng):
    """Epochs of Adam on hard or soft labels (the gradient is KL's); the number of steps."""
    optimizer, steps = torch.optim.Adam(model.parameters(), lr=learning["optimizer"]["lr"]), 0
    model.train()
    for _ in range(learning["epochs"]):
        for rows in torch.randperm(len(x), generator=rng).split(learning["batch"]):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), target[rows]).backward()
            optimizer.step()
            steps += 1
    return steps


@torch.no_grad()
def predict(model, x):
    model.eval()
    return torch.cat([torch.softmax(model(part), 1) for part in x.split(256)])


def consensus(answers):
    """The mean of soft labels with weights exp(-H / 0.2), H being the entropy in nats."""
    p = torch.from_numpy(np.stack([answers[client] for client in sorted(answers)]))  # [K, R, C]
    weight = torch.exp(torch.xlogy(p, p).sum(-1, keepdim=True) / 0.2)
    return (p * weight).sum(0) / weight.sum(0)


def work(pipe, config, data, clients):
    torch.set_num_threads(1)
    (x, y, splits, sizes), rng, learning = load(data), torch.Generator(), config["learning"]
    public, test, kinds = x[splits["public"]], x[splits["test"]], config["clients"][0]["model"]
    rows = {c: splits["private"][slice(*splits["offsets"][c : c + 2])] for c in clients}
    teachers = {c: (build(kinds[c % len(kinds)], sizes), x[rows[c]], y[rows[c]]) for c in clients}
    for _ in range(config["rounds"]):
        steps = sum(train(*teacher, learning["private"], rng) for teacher in teachers.values())
        pipe.send({c: predict(m, public).numpy() for c, (m, *_) in teachers.items()})
        soft = torch.from_numpy(pipe.recv())
        steps += sum(train(m, public, soft, learning["client"], rng) for m, *_ in teachers.values())
        pipe.send((steps, {c: predict(m, test).numpy() for c, (m, *_) in teachers.items()}))


def main(config_path, data, out):
    torch.set_num_threads(1)
    config, rng = json.loads(Path(config_path).read_text()), torch.Generator()
    x, y, splits, sizes = load(data)
    test, validation, public = (x[splits[name]] for name in ("test", "validation", "public"))
    held, kinds = np.diff(splits["offsets"]), len(config["clients"][0]["model"])
    order = sorted(range(len(held)), key=lambda c: (c % kinds, held[c]))  # dealt out evenly
    spawn, workers = multiprocessing.get_context("spawn"), config["execution"]["workers"]
    pipes, far = zip(*(spawn.Pipe() for _ in range(workers)), strict=True)
    for w, end in enumerate(far):
        spawn.Process(target=work, args=(end, config, data, order[w::workers]), daemon=True).start()
    student, ends, steps = build(config["student"], sizes), [], {"clients": 0, "server": 0}
    for _ in range(config["rounds"]):
        soft = consensus({c: p for pipe in pipes for c, p in pipe.recv().items()})
        for pipe in pipes:
            pipe.send(soft.numpy())
        steps["server"] += train(student, public, soft, config["learning"]["server"], rng)
        scores, *_ = [predict(student, inputs) for inputs in (test, validation, public)]
        said = [pipe.recv() for pipe in pipes]
        steps["clients"] += sum(taken for taken, _ in said)
        consensus({c: p for _, answers in said for c, p in answers.items()})  # the ensemble's
        ends.append(time.monotonic())
    right = float((scores.argmax(1) == y[splits["test"]]).double().mean())
    Path(out).write_text(json.dumps({"ends": ends, "steps": steps, "student": right}))


if __name__ == "__main__":
    main(*sys.argv[1:])
