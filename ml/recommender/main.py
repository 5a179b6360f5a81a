"""The recommender program: `tips serve --only recommender`.

It owns all state. `POST /tips` draws a prompt version, calls serving for the tip, and stores the decision;
`POST /reactions` stores the reactions of users; `GET /rewards` and the pages report the rewards of each version.

Importing this module reads the environment, prepares the database and builds `app`, an ordinary FastAPI application. A
configuration error ends the program with one sentence. To build an application from other settings, use
`app.create_app`.
"""

from ml.platform.app_factory import build_app_or_exit
from ml.recommender.app import create_app_with_database
from ml.recommender.settings import RecommenderSettings

app = build_app_or_exit(lambda: create_app_with_database(RecommenderSettings.from_environment()))
