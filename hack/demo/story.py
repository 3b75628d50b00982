"""`make demo`: a real cluster, a real training job, its node taken away, the resume measured and compared bit for bit.

Read `Story.run` for the order of events. Every claim is checked against the API server, the logs or Prometheus; a failed check is printed and makes
the exit code 1.

On a cluster whose machines are not ours (kind, or the one of HOLDFAST_USE_CURRENT_CLUSTER) no power is cut: some seconds after the notice the pod on
that node is deleted without grace. What the demo put on a cluster that was there before it is taken away again.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hack.cluster import api, turn
from hack.cluster.cluster import Cluster
from hack.cluster.errors import ClusterError
from hack.demo import curves, install, metrics, show
from hack.demo.damage import Damager
from hack.demo.kube import Kube, KubectlFailed, wait_for
from hack.demo.metrics import Sum

NAMESPACE = "demo"
JOB, REFERENCE = "bytes-gpt", "bytes-gpt-reference"
BUCKET = "training"
TAINT = "aws-node-termination-handler/spot-itn"
STEPS = 50
SIZE = ("--batch", "4", "--context", "64")
"""What two shared cores can do in half a second per step."""
NOTICE_AT = 17
"""The notice comes once this step has been passed: between two periodic checkpoints (every 10 steps)."""
NOTICE_SECONDS = 12
"""How long after the notice the node's power is cut. AWS gives 120 s; the demo is impatient."""
RESUMES = Sum("holdfast_time_to_resume_seconds_count", where=(("phase", "total"),))
FIGURES = {
    "preemptions": Sum("holdfast_preemptions_total", by="cause"),
    "resumes observed": Sum(RESUMES.metric, by="cause", where=RESUMES.where),
    "time to resume, s": Sum("holdfast_time_to_resume_seconds_sum", by="cause", where=RESUMES.where),
    "steps lost": Sum("holdfast_steps_lost_total"),
}
"""What section 7 shows."""


class Story:
    """One run of the demo."""

    def __init__(self, *, damage: bool, keep: bool, steps: int, out: Path | None) -> None:
        self.damage, self.keep, self.steps, self.out = damage, keep, steps, out
        self.began = time.monotonic()
        self.failed: list[str] = []
        self.followed: dict[str, subprocess.Popen[bytes]] = {}
        self.resumes_before = 0.0
        self.brought_namespace = False
        self.before: install.Before | None = None
        self.cluster: Cluster | Any = None
        self.kube: Kube = None  # type: ignore[assignment]  # set by _cluster, the first step
        self.figures: metrics.Source

    def run(self) -> int:
        self._cluster()
        self._install()
        self._metrics()
        self._reference()
        self._train()
        victim = self._take_node_away()
        self._follow(victim)
        self._results(victim)
        self._show_metrics()
        return self._end()

    # ---- telling

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def title(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def check(self, holds: bool, text: str) -> None:
        self.say(f"{'ok  ' if holds else 'FAIL'} {text}")
        if not holds:
            self.failed.append(text)

    # ---- steps

    def _cluster(self) -> None:
        self.title("1. A real Kubernetes cluster of two nodes")
        self.cluster = api.ensure_cluster(nodes=2, grace=12, images=True)
        if self.damage:
            _ = self.cluster.s3_data  # raises where nothing can be damaged behind the server's back
        self.kube = Kube(self.cluster.bin / "kubectl", self.cluster.kubeconfig)
        found = self.kube.get("nodes")["items"]
        for node in found:
            self.say(f"node {node['metadata']['name']} Kubernetes {node['status']['nodeInfo']['kubeletVersion']}")
        self._take_notices_back()  # of a demo before
        self.check(len(found) >= 2, "two nodes are there")
        if not self.cluster.owns_machines:
            self.say(
                "the machines of this cluster are not ours: in place of a power cut a pod will be deleted without grace, "
                f"and the taint {TAINT} will stand on one node until the demo ends"
            )

    def _install(self) -> None:
        self.title("2. Holdfast by helm, a bucket, a namespace")
        if not self.cluster.is_ours and self.kube.find("namespace", NAMESPACE):
            raise DemoFailed(
                f"your cluster has a namespace {NAMESPACE!r} already, and the demo deletes the one it makes; if it is of an earlier demo: "
                f"kubectl delete namespace {NAMESPACE}"
            )
        self.before = install.look(self.kube, self.cluster.bin / "helm")
        install.install_chart(self.kube, self.cluster.bin / "helm", image=self.cluster.operator_image)
        self.say("helm: release holdfast is deployed and ready")
        s3 = self.cluster.s3(BUCKET)
        self.bucket = install.Bucket(s3.endpoint, s3.access_key, s3.secret_key, s3.region, s3.bucket)
        self.brought_namespace = True
        install.prepare_namespace(self.kube, NAMESPACE, self.bucket)
        for name in (JOB, REFERENCE):
            self.kube.run("delete", "trainingjob", name, "-n", NAMESPACE, "--ignore-not-found", "--wait=true")
        server = "a real S3 server (versitygw)" if self.cluster.is_ours else "your S3 server"
        self.say(f"bucket s3://{self.bucket.name} on {server} at {s3.endpoint}; namespace {NAMESPACE}")

    def _metrics(self) -> None:
        targets, config = self.cluster.state / "targets.json", self.cluster.state / "prometheus-demo.json"
        config.write_text(json.dumps(metrics.scrape_config(targets)))
        try:
            base = self.cluster.prometheus(config)
            proxy = self.cluster.api_proxy
        except (ClusterError, OSError) as e:
            self.figures = metrics.OperatorPage(self.kube, install.SYSTEM)
            self.say(f"no Prometheus can run here ({e}): the figures are read from the operator's own page of metrics")
            return
        self.discovery = metrics.Discovery(self.kube, targets, proxy)
        self.discovery.start()
        self.figures = metrics.Prometheus(base)
        self.say(
            f"Prometheus at {base}" + (f", scraping through the API server (kubectl proxy at {proxy})" if proxy else "")
        )

    def _job(self, name: str) -> dict[str, Any]:
        return install.training_job(
            name, NAMESPACE, f"s3://{self.bucket.name}/demo", torch_path=self.cluster.torch_path_in_pod,
            image=self.cluster.trainer_image, arguments=("--steps", str(self.steps), *SIZE), spec={"fresh": True},
        )  # fmt: skip

    def _reference(self) -> None:
        self.title(f"3. The same training without an interruption ({self.steps} steps, 2 workers of 2 ranks, DDP)")
        self.kube.apply(self._job(REFERENCE))
        self._watch(REFERENCE, lambda s: s.get("phase") in ("Succeeded", "Failed"), 300)
        self.reference = curves.read_run(self._lead_log(REFERENCE))
        self.check(
            bool(self.reference.digest),
            f"reference run: {len(self.reference.losses)} losses, a digest of its final state",
        )
        self.kube.run("delete", "trainingjob", REFERENCE, "-n", NAMESPACE, "--wait=true")

    def _train(self) -> None:
        self.title("4. The job")
        self.kube.apply(self._job(JOB))
        self._watch(JOB, lambda s: s.get("step", 0) >= NOTICE_AT, 180)
        self.uid = self.kube.get("trainingjob", JOB, namespace=NAMESPACE)["metadata"]["uid"]
        for pod in install.pods_of(self.kube, NAMESPACE, JOB):
            self.say(f"pod {pod['metadata']['name']} on {pod['spec']['nodeName']}")

    def _take_node_away(self) -> str:
        victim = self._victim()
        end = "its power is cut" if self.cluster.owns_machines else "its pod is deleted without grace"
        self.title(f"5. A spot interruption notice on {victim}, and {NOTICE_SECONDS} s later {end}")
        self.damager = None
        if self.damage:
            server_data = self.cluster.s3_data / BUCKET
            self.damager = Damager(server_data, self.uid)
            self.damager.start()
            self.say(
                "from here on, one bit of every chunk of the next checkpoint is flipped in the store as soon as it is written"
            )
        self.resumes_before = self._resumes()
        self.noticed = time.monotonic()
        self.kube.run("taint", "node", victim, f"{TAINT}=demo:NoSchedule", "--overwrite")
        self.say(
            f"taint {TAINT} on {victim}: what AWS Node Termination Handler puts there 120 s before the machine goes"
        )
        return str(victim)

    def _victim(self) -> str:
        """A node with a worker but without the operator: what happens when both go at once is a test of its own."""
        operator = self.kube.get("pods", namespace=install.SYSTEM, selector="app.kubernetes.io/name=holdfast")["items"]
        spared = {p["spec"].get("nodeName") for p in operator}
        workers = sorted({p["spec"]["nodeName"] for p in install.pods_of(self.kube, NAMESPACE, JOB)})
        victims = [n for n in workers if n not in spared]
        if not victims or len(workers) < 2:
            raise DemoFailed(
                f"the workers run on {', '.join(workers)} and the operator on {', '.join(map(str, spared))}: two nodes are needed"
            )
        return str(victims[-1])

    def _follow(self, victim: str) -> None:
        seen = ""
        cut = False

        def resumed() -> bool:
            nonlocal seen, cut
            status = self._status(JOB)
            self._follow_lead(JOB)
            line = f"{status.get('phase')} attempt {status.get('attempt', {}).get('number')} step {status.get('step')}"
            if line.split(" step")[0] != seen:
                seen = line.split(" step")[0]
                self.say(line)
            if not cut and time.monotonic() - self.noticed > NOTICE_SECONDS:
                self._end_of_node(victim)
                cut = True
            past = status.get("preemptions") or []
            return cut and bool(past and past[-1].get("resumedAt"))

        wait_for("the job resumes", resumed, timeout=120)
        if self.damager:
            self.damager.stop()
        self._watch(JOB, lambda s: s.get("phase") in ("Succeeded", "Failed"), 300)

    def _end_of_node(self, victim: str) -> None:
        """The machine goes, or what comes nearest to it where machines are not ours."""
        if self.cluster.owns_machines:
            self.cluster.node(victim).off()
            self.say(f"{victim}: power cut")
            return
        pods = install.pods_of(self.kube, NAMESPACE, JOB)
        names = [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") == victim]
        for name in names:
            self.kube.run("delete", "pod", name, "-n", NAMESPACE, "--grace-period=0", "--force", "--ignore-not-found")
        gone = f"{', '.join(names)} deleted without grace" if names else "its pod had left already"
        self.say(f"{victim}: not ours to switch off; {gone}")

    def _take_notices_back(self) -> int:
        """The demo's own; where machines are not ours a notice may be a real one. How many there were."""
        count = 0
        for node in self.kube.get("nodes")["items"]:
            for taint in node["spec"].get("taints", []):
                if taint["key"] == TAINT and (self.cluster.owns_machines or taint.get("value") == "demo"):
                    self.kube.run("taint", "node", node["metadata"]["name"], f"{TAINT}-")
                    count += 1
        return count

    def leave(self) -> None:
        """Takes down what the demo brought, and only that; with --keep everything stays."""
        if self.cluster is None or self.keep:
            return
        try:
            if not self.cluster.is_ours and self.kube is not None:
                self._take_away()
        except (KubectlFailed, install.HelmFailed, subprocess.TimeoutExpired) as e:
            print(f"Something of the demo stays on your cluster: {e}", file=sys.stderr)
        finally:
            self.cluster.down()

    def _take_away(self) -> None:
        notices = self._take_notices_back()
        if self.brought_namespace:
            jobs = ("trainingjob", "--all", "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")
            self.kube.run("delete", *jobs, timeout=90)
            self.kube.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
        if self.before is not None:
            install.remove_chart(self.kube, self.cluster.bin / "helm", self.before)
        brought = {
            "the notice": notices,
            "the namespace": self.brought_namespace,
            "the release": self.before is not None and not self.before.release,
        }
        if any(brought.values()):
            self.say(f"taken away from your cluster: {', '.join(what for what, there in brought.items() if there)}")

    def _results(self, victim: str) -> None:
        self.title("6. What came of it")
        status = self._status(JOB)
        past = (status.get("preemptions") or [{}])[-1]
        ours = curves.read_run(self._lead_log(JOB))
        comparison = curves.compare(ours, self.reference)
        phases = [(p["name"], p["milliseconds"]) for p in past.get("phases", [])]
        rows = [
            (s, f"{self.reference.loss(s):.6f}", f"{ours.loss(s):.6f}" if s in ours.losses else "-",
             "equal" if ours.losses.get(s) == self.reference.losses[s] else "DIFFERENT")
            for s in sorted(self.reference.losses)
            if s % 10 == 0 or s == self.steps or abs(s - past.get("resumedStep", 0)) <= 1
        ]  # fmt: skip
        print(show.table(("step", "loss, uninterrupted", "loss, preempted", "bits"), rows))
        print(
            f"\nTime to resume: {past.get('totalMilliseconds')} ms, cause {past.get('cause')}, from checkpoint {past.get('resumedFrom')}"
        )
        print(show.phase_table(phases) + "\n\n" + show.timeline(phases) + "\n")
        self.check(status.get("phase") == "Succeeded", "the job succeeded")
        self.check(
            comparison.exact, f"{comparison.steps} losses and the final weights and optimizer state are bitwise equal"
        )
        if not comparison.exact:
            self.say(
                f"missing {comparison.missing[:9]} different {comparison.different[:9]} digests {comparison.digests_equal}"
            )
        self.check(
            bool(phases) and sum(ms for _, ms in phases) == past.get("totalMilliseconds"),
            "the phases add up to the whole",
        )
        members = self._status(JOB)["attempt"]["members"]
        self.check(all(m["node"] != victim for m in members), f"at the end no worker was on {victim}: " + ", ".join(
            f"{m['worker']} on {m['node']}" for m in members))  # fmt: skip
        if self.damage:
            self._damage_results(past)
        else:
            self.check(past.get("stepsLost") == 0, "no step was lost")
            self.check(past.get("resumedStep", 0) >= NOTICE_AT, "it resumed from the emergency checkpoint")

    def _damage_results(self, past: dict[str, Any]) -> None:
        touched = self.damager.saves if self.damager else set()
        self.say(
            f"damaged: {', '.join(sorted(touched))}; resumed from {past.get('resumedFrom')}; fell back: {past.get('fellBack')}"
        )
        self.check(bool(touched), "the emergency checkpoint was damaged in the store")
        refused = " ".join(past.get("fellBack", []))
        self.check(bool(touched) and all(t in refused for t in touched), "status names the refused checkpoint and why")
        self.check(past.get("resumedFrom") not in touched, "the job resumed from the checkpoint before")
        events = self.kube.get("events", namespace=NAMESPACE)["items"]
        self.check(any("Rejected" in e["reason"] for e in events), "an event says so")
        count = self.figures.read(Sum("holdfast_fallbacks_total"))
        self.check(bool(count) and count[0][1] >= 1, "the metric holdfast_fallbacks_total says so")

    def _show_metrics(self) -> None:
        scraped = isinstance(self.figures, metrics.Prometheus)
        self.title("7. As a real Prometheus scraped it" if scraped else "7. As the operator's page of metrics says it")
        with contextlib.suppress(TimeoutError):  # a scrape comes once a second; whether it is there is checked below
            wait_for("the resume in the metrics", lambda: self._resumes() > self.resumes_before, timeout=20)
        rows = []
        for name, figure in FIGURES.items():
            found = wait_for(f"{name} in the metrics", partial(self.figures.read, figure), timeout=20)
            # Series of every cause begin at zero; a table of sixteen zeros shows nothing.
            rows += [
                (name, figure.promql, ",".join(labels.values()), round(v, 3)) for labels, v in found if v or not labels
            ]
        print(show.table(("what", "query", "labels", "value"), rows))
        self.check(any(r[0] == "preemptions" and r[3] >= 1 for r in rows), "the preemption is in the metrics")
        self.check(self._resumes() - self.resumes_before == 1, "exactly one resume was observed")

    def _end(self) -> int:
        self.title(
            f"{'Done' if not self.failed else 'NOT as it should be'} after {time.monotonic() - self.began:.0f} s"
        )
        for text in self.failed:
            print(f"  failed: {text}")
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "job.json").write_text(
                json.dumps(self.kube.get("trainingjob", JOB, namespace=NAMESPACE), indent=1)
            )
        if self.keep:
            print(f"The cluster is still up:\n  export KUBECONFIG={self.cluster.kubeconfig} PATH={self.cluster.bin}:$PATH\n"
                  f"  kubectl get tj -n {NAMESPACE} -w\n  kubectl describe tj {JOB} -n {NAMESPACE}\n" + self._how_to_end())  # fmt: skip
        return 1 if self.failed else 0

    def _how_to_end(self) -> str:
        if self.cluster.owns_machines:
            return "  hack/cluster/node n2 on        # power it on again\n  make cluster-down              # and nothing is left"
        end = "  scripts/run -m hack.harness down   # ends what runs for it on this machine"
        if self.cluster.is_ours:
            return f"{end}, and the cluster"
        return f"  kubectl taint node --all {TAINT}-\n  kubectl delete namespace {NAMESPACE}\n  helm uninstall holdfast -n {install.SYSTEM}\n{end}"

    # ---- looking

    def _resumes(self) -> float:
        found = self.figures.read(RESUMES)
        return found[0][1] if found else 0.0

    def _status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.get("trainingjob", name, namespace=NAMESPACE).get("status", {})
        return found

    def _watch(self, name: str, until: Callable[[dict[str, Any]], bool], timeout: float) -> None:
        """Shows progress until `until(status)`; a job that fails on the way ends the demo with the message of its conditions."""
        last = ""

        def look() -> bool:
            nonlocal last
            status = self._status(name)
            self._follow_lead(name)
            step, phase = status.get("step", 0), status.get("phase", "")
            line = show.progress(
                step, self.steps, f"{phase} checkpoint {status.get('lastCheckpoint', {}).get('name', '-')}"
            )
            key = f"{phase}{step // 5}"
            if key != last:
                last = key
                self.say(line)
            if until(status):
                return True
            if phase == "Failed":
                raise DemoFailed(
                    f"{name} failed: "
                    + "; ".join(f"{c['reason']}: {c['message']}" for c in status.get("conditions", []))
                )
            return False

        wait_for(f"{name} gets on", look, timeout=timeout)
        if self._status(name).get("phase") == "Failed":
            raise DemoFailed(f"{name} failed: {json.dumps(self._status(name).get('conditions'), indent=1)}")

    def _follow_lead(self, job: str) -> None:
        """Follows every pod of worker 0 that runs and is not followed yet; called at every look, so none is missed."""
        for pod in install.pods_of(self.kube, NAMESPACE, job):
            name, worker = pod["metadata"]["name"], pod["metadata"]["labels"]["holdfast.dev/worker"]
            if worker == "0" and name not in self.followed and pod["status"].get("phase") in ("Running", "Succeeded"):
                self.followed[name] = self.kube.follow(name, NAMESPACE, self._log_file(name))

    def _lead_log(self, job: str) -> str:
        """What worker 0 printed, in all its pods, oldest first, also those whose node is gone by now."""
        self._follow_lead(job)
        names = [n for n in self.followed if n.startswith(f"{job}-") and n.removeprefix(f"{job}-").count("-") == 2]
        time.sleep(1.0)  # the last lines are on their way
        return "\n".join(self._log_file(n).read_text(errors="replace") for n in names)

    def _log_file(self, pod: str) -> Path:
        return Path(self.cluster.state) / f"demo-{pod}.log"

    def end_followers(self) -> None:
        for process in self.followed.values():
            process.terminate()
            process.wait(10)


class DemoFailed(Exception):
    """The story cannot go on; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--damage", action="store_true", help="damage the emergency checkpoint in the store before the resume"
    )
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="write the job as JSON there")
    options = parser.parse_args()
    story = Story(damage=options.damage, keep=options.keep, steps=options.steps, out=options.out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with turn.taken("make demo"):
            return _told(story)
    except KeyboardInterrupt:
        return 130


def _told(story: Story) -> int:
    """The exit status; whatever happens, what the story brought is taken down again."""
    try:
        return story.run()
    except KeyboardInterrupt:
        print("\ninterrupted: taking down what was started", file=sys.stderr)
        return 130
    except (DemoFailed, TimeoutError, ClusterError, KubectlFailed, install.HelmFailed, subprocess.TimeoutExpired) as e:
        print(f"\nThe demo cannot go on: {e}", file=sys.stderr)
        return 1
    finally:
        story.end_followers()
        story.leave()


if __name__ == "__main__":
    sys.exit(main())
