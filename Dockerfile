# An image for one or more NVIDIA GPUs: docs/install.md, "A container".
#   docker build -t tats-fast .
#   docker run --rm --gpus all tats-fast            # tats-fast doctor
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

# Triton and torch.compile compile small C files when they first run, DeepSpeed C++ ones.
FROM ${BASE} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++ gcc ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

FROM python AS wheel
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY tats_fast /source/tats_fast
COPY kernels /source/kernels
COPY configs /source/configs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python AS run
# First and alone: it is the largest layer, and changes least.
ARG TORCH=torch>=2.11
RUN pip install --no-cache-dir "${TORCH}"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[gpu,loggers,hub]" && rm -r /wheels
# What Triton and DeepSpeed compile is kept at home, and `--user` may name one that has none.
ENV HOME=/tmp
RUN useradd --create-home --uid 10001 tats && install -d -o tats /work
USER tats
WORKDIR /work
ENTRYPOINT ["tats-fast"]
CMD ["doctor"]
