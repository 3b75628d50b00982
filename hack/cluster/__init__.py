"""A real Kubernetes cluster of several nodes on one Linux machine, without a container engine or a virtual machine.

A node is a set of Linux namespaces (mount, PID, network, UTS, IPC, cgroup), with its own containerd, kubelet, kube-proxy,
/run, /var and cgroup root, joined to a bridge of the host by a veth pair. The control plane runs as plain processes of the
host, bound to the bridge's address. So a power cut is one killed process, a pulled cable is one link taken down, and a
stopped cluster leaves no mounts, network namespaces, firewall rules or cgroups behind.

Read `lifecycle.py` first: `up` and `down` are the procedure, one named call per step. `api.py` is what the demo and the
tests hold. Nothing in this package depends on Holdfast, and all of it is standard library only.
"""
