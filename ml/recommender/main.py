"""The recommender program: `uvicorn ml.recommender.main:app`.

It owns all state: `POST /tips` draws a prompt version, has serving write the tip, and stores the decision;
`POST /reactions` stores how users reacted; `GET /rewards` and the pages report which version works.

Importing this module reads the environment, prepares the database and builds `app`, an ordinary FastAPI application. A
setting that cannot work ends the program with one sentence. To build an application from settings of your own, use
`app.create_app`.
"""

from ml.platform.app_factory import build_app_or_exit
from ml.recommender.app import create_app_with_database
from ml.recommender.settings import RecommenderSettings

app = build_app_or_exit(lambda: create_app_with_database(RecommenderSettings.from_environment()))
