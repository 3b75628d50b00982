"""Bad input: one clear message where the user looks first (admission, condition, event), within 30 s, and nothing is lost."""

from typing import Any

import pytest

from hack.demo.kube import KubectlFailed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def refused(lab: Any, manifest: dict[str, Any]) -> str:
    with pytest.raises(KubectlFailed) as e:
        lab.kube.apply(manifest)
    return str(e.value)


def test_a_missing_command_is_refused_at_once(lab: Any) -> None:
    manifest = lab.manifest()
    del manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "command" in refused(lab, manifest)


def test_an_unknown_storage_scheme_is_refused_at_once(lab: Any) -> None:
    message = refused(lab, lab.manifest(uri="ftp://somewhere/x"))
    assert "spec.checkpoint.storage.uri must start with s3://, gs://, az:// or file:///" in message


def test_worker_counts_that_cannot_be_are_refused_at_once(lab: Any) -> None:
    assert "workers" in refused(lab, lab.manifest(spec={"workers": 0}))


def test_a_worker_that_fits_on_no_node_is_named(lab: Any) -> None:
    manifest = lab.manifest()
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1000"}}
    lab.kube.apply(manifest)
    job = lab.job("small")
    assert "cpu" in job.wait_condition(reason="Unschedulable")["message"]


def test_a_bucket_that_does_not_exist_is_named(lab: Any) -> None:
    job = lab.start(uri="s3://no-such-bucket-here/x")
    assert job.wait_condition(reason="StorageMisconfigured", text="no-such-bucket-here")


def test_credentials_that_are_refused_are_not_taken_for_an_empty_bucket(lab: Any) -> None:
    lab.kube.apply({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "training-bucket", "namespace": lab.namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_ENDPOINT_URL": lab.bucket.endpoint},
    })  # fmt: skip
    job = lab.start()
    assert job.wait_condition(reason="StorageDenied")
    assert not job.status().get("step")


def test_a_missing_secret_is_named(lab: Any) -> None:
    manifest = lab.manifest()
    manifest["spec"]["checkpoint"]["storage"]["secretName"] = "not-there"
    lab.kube.apply(manifest)
    assert lab.job("small").wait_condition(text="not-there")


def test_a_script_that_never_calls_the_library_is_told_so(lab: Any) -> None:
    job = lab.start(command=("python", "-c", "import time; time.sleep(5)"))
    assert job.wait_condition(reason="LibraryNotUsed", timeout=60)


def test_a_script_that_crashes_at_once_ends_the_job_with_its_last_words(lab: Any) -> None:
    job = lab.start(
        command=("python", "-c", "raise SystemExit('no such dataset: /data/x')"),
        spec={"budgets": {"failures": {"max": 1, "backoffSeconds": 0}}},
    )
    assert job.wait_condition(text="no such dataset: /data/x")
    job.wait("the job is Failed", lambda s: s.get("phase") == "Failed", 60)


def test_a_command_that_does_not_exist_is_named(lab: Any) -> None:
    job = lab.start(command=("pythn", "train.py"), spec={"budgets": {"failures": {"max": 1, "backoffSeconds": 0}}})
    assert "pythn" in job.wait_condition(text="pythn")["message"]
    job.wait("the job is Failed", lambda s: s.get("phase") == "Failed", 60)


def test_a_corrected_image_reaches_pods_that_exist_already(lab: Any) -> None:
    """Nobody has to delete a pod by hand: what a running container was started with is made anew while nothing is at stake."""
    manifest = lab.manifest(env={"STEPS": "20", "SLEEP": "0"})
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    right, container["image"] = container["image"], "localhost/no-such-image:1"
    lab.kube.apply(manifest)
    job = lab.job("small")
    assert job.wait_condition(reason="ImagePull", text="no-such-image")
    container["image"] = right
    lab.kube.apply(manifest)
    job.wait_succeeded()


def test_an_image_without_the_agent_says_which_line_to_add(lab: Any) -> None:
    manifest = lab.manifest()
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = "localhost/holdfast-base:1"
    lab.kube.apply(manifest)
    assert "pip install" in lab.job("small").wait_condition(text="holdfast[agent]")["message"]


def test_a_mistake_in_the_template_of_a_running_job_is_told_at_once_and_training_goes_on(lab: Any) -> None:
    """A dry run by the real API server (G5), not the next preemption, finds it."""
    job = lab.start(env={"STEPS": "2000", "SLEEP": "0.1"})
    job.wait_step(3)
    pods = {p["metadata"]["uid"] for p in job.pods()}
    manifest = lab.manifest(env={"STEPS": "2000", "SLEEP": "0.1"})
    manifest["spec"]["template"]["spec"]["dnsPolicy"] = "Sometimes"
    lab.kube.apply(manifest)
    condition = job.wait_condition(reason="TemplateInvalid", text="dnsPolicy")
    assert "spec.template" in condition["message"]
    step = job.status()["step"]
    job.wait_step(step + 3)
    assert {p["metadata"]["uid"] for p in job.pods()} == pods
