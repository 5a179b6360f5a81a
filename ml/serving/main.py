"""The serving program: `uvicorn ml.serving.main:app`.

Two routes do the work, and `routes.py` has both:

- `POST /generate` writes one tip from signals.
- `POST /score` ranks candidate tips and draws the one to show.

The prompt version of a tip is the one in the request (`prompt_version`), otherwise the setting
`DEFAULT_PROMPT_VERSION`, otherwise `v1`. An unknown one is an error (422 in a request, one sentence at start-up), never
replaced by another, and every answer names the version that was used.

Importing this module reads the environment and builds `app`, an ordinary FastAPI application. A setting that cannot
work ends the program with one sentence. To build an application from settings of your own, use `app.create_app`.
"""

from ml.platform.app_factory import build_app_or_exit
from ml.serving.app import create_app
from ml.serving.settings import ServingSettings

app = build_app_or_exit(lambda: create_app(ServingSettings.from_environment()))
