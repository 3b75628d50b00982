# The two images of Holdfast. `--target operator`: the controller, without torch. `--target trainer`: what a training pod
# starts from, with the agent and the library; torch comes from PyPI with `--build-arg TORCH=pypi`, or is mounted.
# Dependencies come before sources in each stage, so after a change of the sources one small layer is made again.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SOURCE_DATE_EPOCH=315532800
WORKDIR /src
COPY hack/image/requirements-build.lock ./
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md ./
COPY api api
COPY operator operator
COPY agent agent
COPY cli cli
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheel .

# A virtual environment rather than the system's directories: the same path on every base image.
FROM ${BASE_IMAGE} AS operator
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY requirements-operator.lock /tmp/
# Without pip inside: nothing is installed in a running operator.
RUN python -m venv --without-pip /opt/holdfast \
    && python -m pip --python /opt/holdfast/bin/python install --require-hashes -r /tmp/requirements-operator.lock \
    && rm /tmp/requirements-operator.lock
# Copied, not mounted: buildah 1.28 mounts an empty directory when it takes the stage from its cache.
COPY --from=wheel /wheel /tmp/wheel
RUN python -m pip --python /opt/holdfast/bin/python install --no-deps /tmp/wheel/*.whl && rm -r /tmp/wheel
ENV PATH=/opt/holdfast/bin:$PATH
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["holdfast-operator"]

FROM ${BASE_IMAGE} AS trainer
ARG TORCH=none
ENV PATH=/opt/holdfast/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# A home any user may write to: the pod decides under which one the training runs.
ENV HOME=/tmp
COPY requirements-agent.lock requirements-torch.lock /tmp/
RUN python -m venv /opt/holdfast \
    && pip install --require-hashes -r /tmp/requirements-agent.lock \
    && if [ "$TORCH" = pypi ]; then pip install --require-hashes -r /tmp/requirements-torch.lock; fi \
    && rm /tmp/requirements-agent.lock /tmp/requirements-torch.lock
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-deps /tmp/wheel/*.whl && rm -r /tmp/wheel
WORKDIR /tmp
