"""The serving program: `tips serve --only serving`.

Its two main routes are in `routes.py`:

- `POST /generate` writes one tip from signals.
- `POST /score` ranks candidate tips and draws the one to show.

The prompt version of a tip is the `prompt_version` of the request, otherwise the setting `DEFAULT_PROMPT_VERSION`,
otherwise `v1`. An unknown version is an error (422 in a request, one sentence at start-up); it is never replaced by
another version. Each answer contains the version that was used.

Importing this module reads the environment and builds `app`, an ordinary FastAPI application. A wrong setting ends the
program with one sentence. `app.create_app` builds an application from a settings object instead.
"""

from ml.platform.app_factory import build_app_or_exit
from ml.serving.app import create_app
from ml.serving.settings import ServingSettings

app = build_app_or_exit(lambda: create_app(ServingSettings.from_environment()))
