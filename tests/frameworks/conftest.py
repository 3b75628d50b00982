"""These tests run in the environment of `make test-train` (hack/frameworks.py); elsewhere they are not collected, because the frameworks are not there."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("accelerate") else ["test_*.py"]
