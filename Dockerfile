# The two images of Holdfast. `--target operator`: the controller, without torch. `--target trainer`: what a training pod
# starts from, with the agent and the library; torch comes from PyPI with `--build-arg TORCH=pypi`, or is mounted.
#
# Dependencies and everything else that rarely changes come first, so a change of the sources makes one small layer again,
# the same in both images.
ARG BASE_IMAGE=python:3.11-slim

# The project alone, installed where both images have it. A virtual environment rather than the system's directories: the
# same path on every base image, and nothing of the build environment comes along.
FROM ${BASE_IMAGE} AS project
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SOURCE_DATE_EPOCH=315532800
WORKDIR /src
COPY hack/image/requirements-build.lock ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements-build.lock \
    && python -m venv --without-pip /opt/holdfast
# Everything that .dockerignore lets through: one layer.
COPY . ./
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheel . \
    && /opt/build/bin/pip --python /opt/holdfast/bin/python install --no-deps /wheel/*.whl

FROM ${BASE_IMAGE} AS operator
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY requirements-operator.lock /tmp/
# Without pip in it: nothing is installed in a running operator.
RUN python -m venv --without-pip /opt/holdfast \
    && python -m pip --python /opt/holdfast/bin/python install --require-hashes -r /tmp/requirements-operator.lock \
    && rm /tmp/requirements-operator.lock
ENV PATH=/opt/holdfast/bin:$PATH
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["holdfast-operator"]
COPY --from=project /opt/holdfast /opt/holdfast

FROM ${BASE_IMAGE} AS trainer
ARG TORCH=none
# A home any user may write to: the pod decides under which one the training runs.
ENV PATH=/opt/holdfast/bin:$PATH HOME=/tmp PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
COPY requirements-agent.lock requirements-torch.lock ./
RUN python -m venv /opt/holdfast \
    && pip install --require-hashes -r requirements-agent.lock \
    && if [ "$TORCH" = pypi ]; then pip install --require-hashes -r requirements-torch.lock; fi \
    && rm requirements-agent.lock requirements-torch.lock
COPY --from=project /opt/holdfast /opt/holdfast
