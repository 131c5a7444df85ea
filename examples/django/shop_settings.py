import pathlib

SECRET_KEY = "an example's"
USE_TZ = True
INSTALLED_APPS = ["goods"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": pathlib.Path(__file__).with_name("shop.sqlite3"),
        "CONN_MAX_AGE": None,  # each worker keeps its connection
        "CONN_HEALTH_CHECKS": True,  # and looks first whether it still works
    }
}
