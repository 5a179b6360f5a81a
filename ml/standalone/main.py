"""Both services in one process: `tips serve`.

Importing this module reads the environment, prepares the database and builds `app`, an ordinary FastAPI application. A
setting that cannot work ends the program with one sentence.
"""

from ml.platform.app_factory import build_app_or_exit
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app_with_database

app = build_app_or_exit(
    lambda: create_app_with_database(ServingSettings.from_environment(), RecommenderSettings.from_environment())
)
