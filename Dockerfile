# An image with the project and all that it needs; docs/how-to/docker.md says how to build and run it.
#   PYTHON_VERSION   of the base image
#   EXTRAS           of pyproject.toml
#   TORCH_INDEX      a package index with other builds of torch, such as those for CPUs; none: the
#                    index that pip uses, whose builds for Linux bring CUDA
#   PIP_INDEX_URL    the index that pip uses; none: pip's own
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
# the JPEG decoder (data/images/jpeg.c) is compiled here; Debian's versions are those of the base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
ARG EXTRAS=demo,report,remote,heic,parquet
ARG TORCH_INDEX
ARG PIP_INDEX_URL
# what the project needs, before its code: a change of the code does not install this again
COPY pyproject.toml README.md LICENSE ./
COPY data/images/jpeg.c data/images/
RUN python -m venv /opt/venv \
    && if [ -n "${TORCH_INDEX}" ]; then \
        pip install --index-url "${TORCH_INDEX}" "torch>=2.11" "torchvision>=0.26"; \
    fi \
    && pip install --editable ".[${EXTRAS}]"
COPY configs configs
COPY data data
COPY finetune finetune
COPY pretrain pretrain
COPY scripts scripts
RUN pip install --no-deps --editable . \
    && python -c "from data.images.jpeg import is_available; print('compiled JPEG decoder:', is_available())" \
    && python -m compileall -q /app

FROM python:${PYTHON_VERSION}-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libjpeg62-turbo tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --home-dir /home/mpp mpp
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
RUN install --directory --mode 1777 /home/mpp /app/runs /app/shards
# any user may run it (docker run --user), also one whom the image does not know
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/home/mpp USER=mpp
WORKDIR /app
USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["mpp"]
