# edgecls for x86-64 and for 64-bit Arm without an NVIDIA GPU: predicts and serves on the CPU.
#   docker build -t edgecls .
# With an NVIDIA GPU, whose CUDA and cuDNN come along with pip (3 GB): docker run --gpus all ...
#   docker build -t edgecls:gpu --build-arg ENGINE=gpu-cuda .
# For a Jetson: Dockerfile.jetson.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgecls edgecls
# One of the extras of pyproject.toml that bring an engine: cpu, openvino, gpu-cuda. With others behind it: cpu,cloud reads object stores.
ARG ENGINE=cpu
RUN python3 -m venv /opt/edgecls \
    && /opt/edgecls/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/edgecls/bin/python -m pip install --no-cache-dir "$(echo /wheels/edgecls-*.whl)[${ENGINE},serve]"

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="edgecls" \
    org.opencontainers.image.description="Image classification on a server, measured at every step" \
    org.opencontainers.image.licenses="Apache-2.0"
ARG UID=1000
ARG GID=1000
RUN groupadd --force --non-unique --gid "${GID}" edgecls \
    && useradd --no-log-init --non-unique --create-home --uid "${UID}" --gid "${GID}" edgecls \
    && install --directory --owner edgecls --group "${GID}" /work /cache
COPY --from=build /opt/edgecls /opt/edgecls
# Opened bundles and timings are kept in /cache.
ENV PATH=/opt/edgecls/bin:${PATH} PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache ORT_DISABLE_TELEMETRY=1
RUN python -c "import cv2, edgecls.cli" \
    && python -c "from importlib.util import find_spec; assert not find_spec('torch'), 'the image has torch'"
USER ${UID}
VOLUME /cache
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=1m CMD ["edgecls", "doctor", "--seconds", "0", "--json"]
ENTRYPOINT ["edgecls"]
CMD ["--help"]
