"""The one place where the version is written; packaging and manifests read it."""

__version__ = "0.1.0"
