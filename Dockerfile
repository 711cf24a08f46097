# SPDX-License-Identifier: Apache-2.0
# CPU image of the command `longmem`; without arguments it runs the demo. See docs/operations.md, "Container".

FROM python:3.11-slim-bookworm AS build
# an index with CPU wheels of torch, for example, which are gigabytes smaller than those with CUDA
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /venv \
 && /venv/bin/pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY longmem longmem
COPY actors actors
COPY pipelines pipelines
# smollm2 also needs cmake and g++ here, because it pulls in llama-cpp-python, of which there are no wheels
ARG EXTRAS=datasets,gguf
RUN /venv/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
# the native search is compiled on first use; versions of Debian's compiler do not change results
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home longmem \
 && mkdir /data \
 && chown 10001 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
USER 10001
# models of the hub, inputs and results: mount a folder here to keep them
WORKDIR /data
ENTRYPOINT ["longmem"]
CMD ["perplexity", "--address", "none", "--out", "demo"]
