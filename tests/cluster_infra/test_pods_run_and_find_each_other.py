"""Pods start, reach each other and the API server, and train together over two nodes."""

import time
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

SERVER = """
import http.server
http.server.ThreadingHTTPServer(("", 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

CALL_API_SERVER = """
import ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
request = urllib.request.Request("https://kubernetes.default.svc/api")
request.add_header("Authorization", "Bearer " + open(folder + "token").read())
context = ssl.create_default_context(cafile=folder + "ca.crt")
print(urllib.request.urlopen(request, context=context, timeout=5).status)
"""

TRAINS = """
import os, socket, time
import torch
import torch.distributed as dist
for _ in range(100):
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], 29500)
        break
    except OSError:
        time.sleep(0.2)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(20):
    inputs = torch.randn(16, 8)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    optimizer.step()
print("world", dist.get_world_size(), "loss below one", loss.item() < 1)
"""


def fetch(url: str) -> str:
    return f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=5).status)"


def test_a_pod_is_ready_within_seconds_on_each_node(world: Any) -> None:
    for node in ("n1", "n2"):
        began = time.monotonic()
        world.pod(f"start-{node}", node=node)
        assert time.monotonic() - began < 10


def test_pods_reach_pods_services_and_the_api_server_by_name(world: Any, until: Any) -> None:
    world.pod("server", SERVER, node="n2", labels={"app": "server"}, wait=False)
    world.pod("client", node="n1")
    world.create({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })  # fmt: skip
    world.kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=60s")

    def ask(code: str) -> Any:
        return world.kubectl("exec", "client", "--", "python3", "-c", code).strip() == "200"

    pod_ip = world.get("pod", "server")["status"]["podIP"]
    for url in (f"http://{pod_ip}:8080/", "http://server/", f"http://server.{world.namespace}.svc.cluster.local/"):
        until(lambda url=url: ask(fetch(url)), 15)
    assert ask(CALL_API_SERVER)


def test_two_pods_on_two_nodes_train_together_with_gloo(world: Any, until: Any) -> None:
    world.create({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "job"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job": "a"}},
    })  # fmt: skip
    torch = world.cluster.torch_path_in_pod
    for rank in (0, 1):
        variables = {
            "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "w0.job", "MASTER_PORT": "29500",
            "OMP_NUM_THREADS": "1", "PYTHONPATH": torch,
        }  # fmt: skip
        container = {
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "volumeMounts": [{"name": "torch", "mountPath": torch, "readOnly": True}],
        }
        world.pod(
            f"w{rank}", TRAINS, node=f"n{rank + 1}", wait=False, labels={"job": "a"}, container=container,
            hostname=f"w{rank}", subdomain="job", volumes=[{"name": "torch", "hostPath": {"path": torch}}],
        )  # fmt: skip
    until(lambda: all(world.get("pod", f"w{rank}")["status"]["phase"] == "Succeeded" for rank in (0, 1)), 120)
    assert "world 2 loss below one True" in world.kubectl("logs", "w0")
